"""What is the hippocampus's own, as plain constants: its sides, its labels in every format, its size, and how it lies."""

SIDES = ("left", "right")
LABELS = {
    "left": (1, 2),
    "right": (3, 4),
}  # anterior and posterior in the label map of a head; in that of a crop 1 and 2
FREESURFER = {"left": 17, "right": 53}  # FreeSurfer's numbers of the whole hippocampus
DESCRIPTIONS = {  # {whether the labels are FreeSurfer's: {label: (name, abbreviation, colour)}}
    False: {
        1: ("left anterior hippocampus", "L-ant", "#56B4E9"),
        2: ("left posterior hippocampus", "L-post", "#E69F00"),
        3: ("right anterior hippocampus", "R-ant", "#0072B2"),
        4: ("right posterior hippocampus", "R-post", "#D55E00"),
    },
    True: {17: ("left hippocampus", "L-hippo", "#56B4E9"), 53: ("right hippocampus", "R-hippo", "#E69F00")},
}

# where it lies
WINDOW = (36, 52, 36)  # voxels around a hippocampus, as large as the training's patches
LONG_AXIS = (0.064, 0.913, -0.402)  # from tail to head of a left hippocampus, mean of the training labels
MOST_TURNED_DEGREES = 40  # a longer axis that lies further off is not trusted
APART_MM = (25, 90)  # between the middles of both
SMALL_CROP_MM = (44.5, 60.5, 48.5)  # a crop up to this size is one window, as all of the training's crops are
LARGEST_CROP_MM = 100  # a scan whose sides are all shorter shows a part of a head

# how large it is
MEAN_MM3 = 3300
SEEN_MM3 = (400, 15_000)  # as the locating network may see it, on voxels of 4 mm
USUAL_MM3, POSSIBLE_MM3 = (1500, 6000), (300, 12_000)  # what is outside is flagged, or refused

# the head around it
PLAUSIBLE_ETIV_MM3 = (900_000, 2_200_000)
SMALL_ETIV_MM3 = 600_000  # a head below it in which a hippocampus is not found has a wrong voxel size, most likely
