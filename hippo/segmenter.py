"""The engine that turns a scan into a Result. All callers use this module.

from hippo.segmenter import Segmenter
segmenter = Segmenter.load()
result = segmenter("head.nii.gz")
for side in result.sides:
    print(side.side, side.anterior_mm3, side.posterior_mm3, side.quality, side.problem)
print([flag.name for flag in result.all_flags])
result.save("predictions")
"""

import time
from dataclasses import dataclass, fields
from pathlib import Path

from hippo.data.nifti import is_phantom, name_of, to_stored_orientation
from hippo.errors import require
from hippo.heads import anatomy
from hippo.heads.flags import FLAGS, OF_ETIV
from hippo.heads.networks import load_networks
from hippo.heads.quality import judge, limits_of
from hippo.heads.result import Result, as_side, check_etiv
from hippo.heads.scan import Scan, read_scan
from hippo.heads.segment import models_for, segment
from hippo.heads.uncertainty import sample_scan


@dataclass
class Settings:
    """The constants of predict.py on which a Result depends, in lower case. predict.py documents them."""

    checkpoint: str = "pretrained/heads_3d.pth"
    partner: str = "pretrained/heads_2d.pth"
    any_contrast: str = "pretrained/any_contrast.pth"
    contrast: str = "auto"
    locate: str = "pretrained/locate.pth"
    side: str = "auto"
    labels: str = "parts"
    low_quality: float = 0.75
    least_quality: float = 0.5
    asymmetry: float = 0.25
    usual_mm3: tuple = anatomy.USUAL_MM3
    possible_mm3: tuple = anatomy.POSSIBLE_MM3
    samples: int = 0
    sampler: str = "pretrained/heads_dropout.pth"
    tta: bool = True
    device: str = "auto"
    amp: bool = True

    @classmethod
    def of(cls, cfg):
        """Returns the Settings contained in the configuration of a script."""
        return cls(**{field.name: getattr(cfg, field.name) for field in fields(cls)})

    def check(self):
        """Raises UserError for values that are invalid or contradict each other."""
        require(self.side in ("auto", "left", "right"), f"--side={self.side}: expected auto, left or right")
        require(self.contrast in ("auto", "t1", "any"), f"--contrast={self.contrast}: expected auto, t1 or any")
        needs = "--contrast=any needs weights: give --any_contrast=FILE"
        require(self.any_contrast or self.contrast != "any", needs)
        require(self.labels in ("parts", "freesurfer"), f"--labels={self.labels}: expected parts or freesurfer")
        require(self.samples == 0 or self.samples > 1, f"--samples={self.samples}: expected 2 or more, or 0 for none")
        missing = "--samples needs a 3D model that was trained with --dropout; give --sampler=FILE"
        require(self.sampler or not self.samples, missing)


class Segmenter:
    """Finds and segments the hippocampi of scans. Load it once, then call it with each scan."""

    def __init__(self, networks, settings):
        self.networks, self.settings = networks, settings

    @classmethod
    def load(cls, **settings):
        """Loads the shipped weights, or those named in other Settings, and returns a Segmenter. Raises UserError for
        invalid settings, and for weights that are missing or do not fit together."""
        known = {field.name for field in fields(Settings)}
        unknown = [name for name in settings if name not in known]
        require(not unknown, f"Segmenter.load has no argument {unknown[:1]}; expected {', '.join(sorted(known))}")
        settings = Settings(**settings)
        settings.check()
        networks = load_networks(settings)
        if networks.single_label:
            require(not settings.samples, "--samples needs a model of both parts")
            settings.labels = "freesurfer"
        return cls(networks, settings)

    def __call__(self, source, etiv_mm3=None, progress=None):
        """Segments a scan, given as the path of a file, a nibabel image, or a Scan. Returns a Result. Raises UserError
        (hippo.errors) for what cannot be read as a volume; a side that is not found has a `problem` and no volumes.

        etiv_mm3: the intracranial volume in mm3, if it is known. progress: called with "found", "left" and "right" as
        work proceeds.
        """
        if etiv_mm3 is not None:
            etiv_mm3 = check_etiv(etiv_mm3, "etiv_mm3")
        start = time.perf_counter()
        scan = source if isinstance(source, Scan) else read_scan(source)
        sides, located = self._segment(scan, progress)
        sides = judge(sides, scan, limits_of(self.settings), self._is_strict(scan))
        maps, spreads = self._sample(scan, sides)
        etiv, source_of_etiv, flags = _etiv(located, etiv_mm3)
        return Result(
            name=str(source) if isinstance(source, (str, Path)) else name_of(scan.image),
            sides=tuple(self._side(side, scan, spread) for side, spread in zip(sides, spreads)),
            flags=tuple(FLAGS[name] for name in (*scan.flags, *flags)),
            etiv_mm3=etiv,
            etiv_source=source_of_etiv,
            seconds=time.perf_counter() - start,
            single_label=self.settings.labels == "freesurfer",
            synthetic=self.networks.synthetic,
            scan=scan,
            located=located,
            uncertainty=maps,
        )

    def _segment(self, scan, progress):
        """Locates and segments both hippocampi, and chooses between the T1 models and the model for any contrast."""
        networks, settings = self.networks, self.settings
        # thresholds of the comparison hold for the shipped models only
        compared = (self._is_strict(scan) and networks.shipped) or settings.contrast == "any"
        other = (networks.any_contrast, settings.contrast) if compared else (None, "t1")
        least = settings.least_quality if self._is_strict(scan) else 0.0
        how = (networks.device, networks.dtype, settings.tta, settings.side, *other, progress, least)
        return segment(networks.models, networks.locator, scan, *how)

    def _is_strict(self, scan):
        """Whether doubtful results are refused. They are not if models or scan are phantoms, since then confidence is
        always low."""
        return not (self.networks.synthetic or is_phantom(scan.image))

    def _sample(self, scan, sides):
        """Estimates uncertainty by MC dropout. Returns (uncertainty maps in the stored orientation or None, standard
        deviations of the volumes of each side)."""
        networks = self.networks
        if not networks.sampler:
            return None, [()] * len(sides)
        samples = self.settings.samples
        maps, spreads = sample_scan(networks.sampler, scan, sides, samples, networks.device, networks.dtype)
        return to_stored_orientation(maps, scan.image), spreads

    def _side(self, side, scan, spread):
        """Converts a Hippocampus to a Side."""
        by_any, networks = "any_contrast" in side.flags, self.networks
        used = models_for(networks.models, scan)
        names = [name for name, model in zip(networks.name.split("+"), networks.models) if model in used]
        model = Path(self.settings.any_contrast).name if by_any else "+".join(names)
        # the sampler is a T1 model
        return as_side(side, scan, model, networks.single_label, () if by_any else spread)


def _etiv(located, given_mm3):
    """Returns (eTIV in mm3 or None, its source, names of the locator's flags that apply)."""
    flags = located.flags if located else []
    if given_mm3 is not None:
        return given_mm3, "given", [flag for flag in flags if flag not in OF_ETIV]
    return (located.etiv_mm3, "network", flags) if located else (None, "", flags)
