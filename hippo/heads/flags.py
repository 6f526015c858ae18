"""All flags, the doubts about a result: each is defined once, with its severity, its meaning and what to do about it.

The modules that detect a problem raise its flag by name: hippo.data.nifti (headers), scan, locate, segment, quality, and
hippo.study.change. The picture, the page of a study, the page in the browser and docs/troubleshooting.md take
everything else from here.
"""

from dataclasses import dataclass

RED, AMBER, GREEN = "red", "amber", "green"
NONE = "none"  # severity of a harmless flag, which most scans written by some programs have


@dataclass(frozen=True)
class Flag:
    """A doubt about a result. severity: red (the result is likely wrong), amber (check the result) or none; meaning,
    what_to_do: Markdown for the user."""

    name: str
    severity: str
    meaning: str
    what_to_do: str

    def __str__(self):
        return self.name

    @property
    def explanation(self):
        """Returns the meaning and what to do as plain text."""
        return f"{self.meaning}. What to do: {self.what_to_do}.".replace("`", "")


_LOOK = "look at the picture"
_FLAGS = (
    Flag(
        "low_quality",
        RED,
        "`quality` is below `LOW_QUALITY=0.75`: motion, blur, another contrast or an unusual anatomy",
        f"{_LOOK}; leave the scan out if the outline is wrong",
    ),
    Flag(
        "in_fluid",
        RED,
        "half of the outline or more is as dark, or as bright, as fluid: a hippocampus that was removed in part, a cyst, or strong atrophy "
        "(where it is three quarters, there is no result)",
        f"{_LOOK}; do not use the volume unless the outline is right",
    ),
    Flag("models_disagree", AMBER, "the 3D and the 2D network see different hippocampi", _LOOK),
    Flag(
        "asymmetric",
        AMBER,
        "left and right differ by more than `ASYMMETRY=0.25` of their mean",
        "look at both sides: a real asymmetry is visible in the scan itself",
    ),
    Flag(
        "implausible_volume",
        AMBER,
        "the volume lies outside `USUAL_MM3=[1500, 6000]`",
        f"{_LOOK}; check the voxel size in the header",
    ),
    Flag(
        "any_contrast",
        AMBER,
        "the result comes from the network for any contrast, which was not validated with labels",
        f"{_LOOK}; use a T1-weighted scan if there is one",
    ),
    Flag(
        "contrast_doubtful",
        AMBER,
        "the network for any contrast draws another outline: strong atrophy, or not T1-weighted; the T1 networks' is kept",
        "compare with `--contrast=any` and `--contrast=t1`",
    ),
    Flag(
        "contrast_not_t1",
        AMBER,
        "fluid is not dark: the scan is inverted, T2-weighted or similar",
        "use a T1-weighted scan if there is one",
    ),
    Flag(
        "spacing_differs",
        AMBER,
        "the header gives two voxel sizes, in pixdim and in the sform, and the sform counts; a difference of 8 % makes volumes 24 % wrong",
        "find out which one is right before you use a volume",
    ),
    Flag(
        "units_not_mm",
        AMBER,
        "the header says that it counts in metres or microns, but its numbers are those of mm, which count",
        "set the unit in the header to mm",
    ),
    Flag(
        "thick_slices",
        AMBER,
        "voxels are longer than 2 mm (more than 5 mm fail); volumes come out smaller",
        "compare such scans only with one another",
    ),
    *(
        Flag(
            f"{form}_only",
            NONE,
            f"a header can hold the orientation twice, as sform and as qform; this one holds it once, as {form}",
            "nothing, if left and right are right in your viewer",
        )
        for form in ("sform", "qform")
    ),
    Flag(
        "sform_qform_disagree",
        AMBER,
        "sform and qform put the scan in different places; the sform counts",
        "check the scan in your viewer",
    ),
    Flag(
        "sform_qform_sides_differ",
        AMBER,
        "the sform and the qform disagree about left and right; the sform counts",
        "find out which one is right before you use a side",
    ),
    Flag(
        "no_orientation",
        AMBER,
        "the header has neither sform nor qform, or an `.mgz` file says that its orientation is not valid (FreeSurfer's default counts then, at "
        "1 mm); left and right are a guess",
        "convert the DICOM files again with `dcm2niix`",
    ),
    Flag("head_turned", AMBER, "left to right lies more than 35 degrees off the axis", _LOOK),
    Flag(
        "touches_window", AMBER, "the hippocampus reaches the edge of where the networks looked: it may be cut", _LOOK
    ),
    Flag(
        "window_unsettled",
        AMBER,
        "the place to look at did not settle: something beside the hippocampus may be added",
        _LOOK,
    ),
    Flag("touches_field_of_view", AMBER, "the hippocampus reaches the edge of the scan", "the volume may be too small"),
    Flag(
        "intracranial_space_cut",
        AMBER,
        "a part of the intracranial space is out of view",
        "do not use eTIV, or set your own with `--etiv`",
    ),
    Flag(
        "etiv_implausible",
        AMBER,
        "eTIV lies outside 0.9 to 2.2 million mm³",
        "do not use eTIV, or set your own with `--etiv`",
    ),
    Flag(
        "side_doubtful",
        AMBER,
        "of a crop: both sides look alike, or the other side fits better than the one you gave",
        "tell the side with `--side=left` or `--side=right`",
    ),
    Flag(
        "visits_differ",
        AMBER,
        "of a change: the two visits have other voxel sizes, scanners or networks, which alone may change a volume",
        "compare visits of one protocol; trust the change of a group more than that of a person",
    ),
)
FLAGS = {flag.name: flag for flag in _FLAGS}
# flags about the eTIV that the locating network estimates: not raised if eTIV is given; such heads get no adjusted volumes
OF_ETIV = ("intracranial_space_cut", "etiv_implausible")


def flags_in(text):
    """Returns the Flags named in a table cell, which separates names by semicolons. Ignores the reason of a failure."""
    return [FLAGS[name] for name in text.split(";") if name in FLAGS]


def verdict(flags, has_result):
    """Returns (red, amber or green, list of the Flags that count against the result). Red means that the result is
    missing or likely wrong, amber that it should be checked."""
    doubts = [flag for flag in flags if flag.severity != NONE]
    if not has_result or any(flag.severity == RED for flag in doubts):
        return RED, doubts
    return (AMBER if doubts else GREEN), doubts
