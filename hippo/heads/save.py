"""Writes a Result to files: label map, probability maps, and the picture to check it by."""

from pathlib import Path
from typing import NamedTuple

from hippo.data.cases import case_id
from hippo.data.nifti import save_labels, save_like
from hippo.files import atomic, remove_half_written
from hippo.heads.profile import save_profiles

import numpy as np

_PARTS = {  # header description of labels and probability maps; True: labels of a crop
    False: "L anterior 1, posterior 2; R anterior 3, posterior 4",
    True: "hippocampus: 1 anterior, 2 posterior",
}


class Paths(NamedTuple):
    """Paths of the files of a Result, relative to a folder. An empty path means that the file is not written."""

    labels: str
    probabilities: str = ""
    uncertainty: str = ""
    picture: str = ""
    thumbnail: str = ""
    profile: str = ""


def paths_in(name, is_crop):
    """Returns the Paths of the label map and the picture for a scan of this name."""
    stem = case_id(name) or "scan"
    return Paths(f"{stem}_{'seg' if is_crop else 'hippocampus'}.nii.gz", picture=f"{stem}_hippocampus.png")


def save_result(result, folder, paths, numbered_as_crop=None, written=None):
    """Writes the files that `paths` names: label and probability maps (only if a side has a result), uncertainty maps,
    the profiles along the long axis, and the picture. Each file is written completely or not at all. Returns their paths.

    numbered_as_crop: see Result.labels; written: list to which each path is appended before it is written.
    """
    folder, written = Path(folder), [] if written is None else written
    crop = result.scan.is_crop if numbered_as_crop is None else numbered_as_crop
    image, synthetic = result.scan.image, result.synthetic

    def target(path):
        remove_half_written(folder / path)
        written.append(folder / path)
        return folder / path

    if result.has_result:
        description = "17 left, 53 right hippocampus" if result.single_label else _PARTS[crop]
        save_labels(target(paths.labels), result.labels(crop), image, description, synthetic)
        if paths.probabilities:
            soft = np.round(255 * result.probabilities(crop)).astype(np.uint8)
            save_like(target(paths.probabilities), soft, image, _PARTS[crop], 1 / 255, synthetic)
    if paths.uncertainty and result.uncertainty is not None:
        words = "predictive entropy, mutual information; 0 to 1"
        save_like(target(paths.uncertainty), result.uncertainty, image, words, 1.0, synthetic)
    if paths.profile and result.has_result:
        save_profiles(target(paths.profile), {side.side: side.profile() for side in result.sides if not side.problem})
    if paths.picture:
        from hippo.heads.picture import picture_of_scan, thumbnail  # matplotlib takes half a second to import

        picture_of_scan(target(paths.picture), result.scan, [side.found for side in result.sides], result.rows())
    if paths.picture and paths.thumbnail:
        with atomic(target(paths.thumbnail)) as temporary:
            thumbnail(folder / paths.picture, temporary)
    return written
