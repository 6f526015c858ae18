"""Everything specific to the hippocampus, as plain constants: sides, labels in every format, size, position and
orientation."""

SIDES = ("left", "right")
LABELS = {
    "left": (1, 2),
    "right": (3, 4),
}  # anterior and posterior in the label map of a whole head; a crop has 1 and 2
FREESURFER = {"left": 17, "right": 53}  # FreeSurfer's label of the whole hippocampus
DESCRIPTIONS = {  # {whether the labels are FreeSurfer's: {label: (name, abbreviation, colour)}}
    False: {
        1: ("left anterior hippocampus", "L-ant", "#56B4E9"),
        2: ("left posterior hippocampus", "L-post", "#E69F00"),
        3: ("right anterior hippocampus", "R-ant", "#0072B2"),
        4: ("right posterior hippocampus", "R-post", "#D55E00"),
    },
    True: {17: ("left hippocampus", "L-hippo", "#56B4E9"), 53: ("right hippocampus", "R-hippo", "#E69F00")},
}

# position and orientation
WINDOW = (36, 52, 36)  # size in voxels of the window around a hippocampus, the size of the training patches
LONG_AXIS = (0.064, 0.913, -0.402)  # direction from tail to head of a left hippocampus, mean of the training labels
MOST_TURNED_DEGREES = 40  # a long axis that deviates by more from LONG_AXIS is not trusted
APART_MM = (25, 90)  # distance between the centres of the two hippocampi
SMALL_CROP_MM = (44.5, 60.5, 48.5)  # a crop up to this size is used as one window, like all training crops
LARGEST_CROP_MM = 100  # a scan whose sides are all shorter is a crop of a head

# size
# volume that the locating network may report: it draws hippocampi twice as large as they are, 3500 to 12,400 in painted heads
SEEN_MM3 = (1500, 25_000)
USUAL_MM3, POSSIBLE_MM3 = (1500, 6000), (300, 12_000)  # volumes outside are flagged, or refused

# the whole head
PLAUSIBLE_ETIV_MM3 = (900_000, 2_200_000)
SMALL_ETIV_MM3 = 600_000  # if no hippocampus is found in a smaller head, the voxel size is most likely wrong
