"""What the API of the page takes and answers."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Problem(BaseModel):
    """The reason why a request was refused."""

    detail: str


class Side(BaseModel):
    """One hippocampus. If it was not found, problem says why, and there are no numbers."""

    side: Literal["left", "right", ""]
    anterior_mm3: float | None
    posterior_mm3: float | None
    total_mm3: float | None
    quality: float | None = Field(description="Dice to expect, 0 to 1")
    verdict: Literal["green", "amber", "red"] = Field(description="no doubts, to be looked at, or doubtful")
    flags: list[str]
    doubts: list[str] = Field(description="the flags that speak against the result")
    problem: str
    middle_mm: list[float] | None = Field(description="of its labels, in the scan's space")


class Label(BaseModel):
    """A label of the label map."""

    name: str
    colour: str


class Result(BaseModel):
    """The result of a scan."""

    sides: list[Side] = Field(description="both of a head, one of a crop")
    etiv_mm3: float | None = Field(description="estimated total intracranial volume; null for a crop")
    asymmetry: float | None = Field(description="(left - right) / mean of both")
    flags: dict[str, str] = Field(description="what each flag means")
    labels: dict[int, Label]
    seconds: float
    model: str
    converted: bool = Field(description="whether there is a scan.nii.gz, made of DICOM files or of a .zip file")
    synthetic: bool = Field(description="a phantom, or a model of phantoms: no person")


class Series(BaseModel):
    """A series of DICOM files, or a scan in a .zip file."""

    id: str
    name: str
    number: int
    kind: str
    grid: str = Field(description="its size in voxels, and theirs in mm")
    why: str = Field(description="what speaks against it; empty: a T1-weighted head in 3D, as far as its header says")


class Choice(BaseModel):
    """One of the series of a job."""

    id: str = Field(max_length=100)


class Status(BaseModel):
    """A job: a scan from upload to result."""

    id: str
    state: Literal["waiting", "running", "choosing", "done", "failed"]
    steps: list[str] = Field(description="of received, converted, found, left, right, done: those that are behind")
    series: list[Series] = Field(description="of a job that is choosing: send the id of one of them")
    ahead: int = Field(description="jobs that come first")
    error: str = Field(description="of one that failed: why")
    result: Result | None
    keep_minutes: float = Field(description="results are deleted so long after they are done")
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "fJ3c0sHnVq1XoPz2bT8yRw",
                    "state": "running",
                    "steps": ["received", "found", "left"],
                    "series": [],
                    "ahead": 0,
                    "error": "",
                    "result": None,
                    "keep_minutes": 60,
                }
            ]
        }
    )


class Health(BaseModel):
    """The state of the server."""

    version: str
    device: str
    jobs: dict[str, int] = Field(
        description="by state", examples=[{"waiting": 0, "running": 1, "done": 3, "failed": 0}]
    )
    queue: int = Field(description="scans that may wait")
    max_upload_mb: int
    seconds: float | None = Field(description="that the last scan took; null before the first one is done")
    keep_minutes: float
