"""The web application: the page, its API, and the API's documentation."""

import base64
import contextlib
import hashlib
import io
import re
import zipfile
from pathlib import Path
from typing import Annotated, Literal

from hippo import __version__
from hippo.data.cases import case_id
from hippo.data.formats import ENDINGS
from hippo.web.gate import Gate

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import UploadFile

FOLDER = Path(__file__).parent
GONE = "no such job: it was deleted, its time is over, or the server was started anew; send the scan again"
_FILES = {"labels": "labels.nii.gz", "volumes": "volumes.csv", "picture": "picture.png", "all": "all.zip"}
_MEDIA = {"labels": "application/gzip", "picture": "image/png", "volumes": "text/csv", "all": "application/zip"}
_NAMES = {"labels": "_hippocampus.nii.gz", "picture": "_hippocampus.png", "volumes": "_volumes.csv", "all": ".zip"}
_FORM = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["file"],
                "properties": {
                    "file": {"type": "string", "format": "binary", "description": "a .nii, .nii.gz, .mgz or .mgh file"}
                },
            }
        }
    },
}
_POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self' data: blob:",
    "connect-src": "'self' data: blob:",
    "base-uri": "'none'",
    "form-action": "'self'",
    "frame-ancestors": "'none'",
}


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
    synthetic: bool = Field(description="a phantom, or a model of phantoms: no person")


class Status(BaseModel):
    """A job: a scan from upload to result."""

    id: str
    state: Literal["waiting", "running", "done", "failed"]
    steps: list[str] = Field(description="of received, found, left, right, done: those that are behind")
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
    keep_minutes: float


def create_app(jobs, example, hosts, max_upload_mb):
    """Creates the ASGI application. jobs: Jobs; example: function without arguments that returns the bytes of a
    phantom's .nii.gz; hosts: names under which the server may be addressed."""

    @contextlib.asynccontextmanager
    async def lifespan(app):
        yield
        jobs.close()

    text = "Anterior and posterior hippocampus of a scan. Not for clinical use: look at each result before you use it."
    app = FastAPI(
        title="Hippocampi", version=__version__, description=text, lifespan=lifespan, docs_url=None, redoc_url=None
    )
    app.mount("/static", StaticFiles(directory=FOLDER / "vendor"), name="static")
    refusals = {403: "a foreign Host or Origin", 413: "too large", 503: "the queue is full", 408: "it stalled"}
    _add_api(app, jobs, max_upload_mb, {code: _response(text) for code, text in refusals.items()})
    index = (FOLDER / "index.html").read_text(encoding="utf-8")
    docs = get_swagger_ui_html(
        openapi_url="/openapi.json",
        title="Hippocampi: the API",
        swagger_js_url="/static/swagger-ui-bundle.js",
        swagger_css_url="/static/swagger-ui.css",
        swagger_favicon_url="data:,",
    ).body.decode()

    @app.get("/", include_in_schema=False)
    def page():
        return HTMLResponse(index)

    @app.get("/docs", include_in_schema=False)
    def documentation():
        return HTMLResponse(docs)

    @app.get("/example.nii.gz", include_in_schema=False)
    def phantom():
        return Response(example(), media_type="application/gzip")

    return Gate(app, jobs, hosts, max_upload_mb * 1_000_000, _policy(index, docs))


def _add_api(app, jobs, max_upload_mb, refusals):
    """Adds the routes below /api."""

    def find(job_id: str):
        job = jobs.get(job_id)
        if job is None:
            raise HTTPException(404, GONE)
        return job

    known = Annotated[object, Depends(find)]
    missing = {404: _response("no such job"), 403: refusals[403]}

    def status_of(job):
        return Status(
            id=job.id,
            state=job.state,
            steps=list(job.steps),
            ahead=jobs.ahead_of(job),
            error=job.error,
            result=job.result,
            keep_minutes=jobs.keep_minutes,
        )

    broken = {400: _response("a broken form, or one of more than a file"), 422: _response("no file in it")}

    @app.post("/api/jobs", status_code=202, responses={**refusals, **broken}, openapi_extra={"requestBody": _FORM})
    async def send_a_scan(request: Request, response: Response) -> Status:
        async with request.form(max_files=1, max_fields=1) as form:
            file = form.get("file")
            if not isinstance(file, UploadFile):
                raise HTTPException(422, "expected a form with a file under the name file")
            name = file.filename or ""
            ending = next((ending for ending in ENDINGS if name.lower().endswith(ending)), "")
            try:
                job = await run_in_threadpool(jobs.add, file.file, label_of(name), ending)
            except OSError:
                raise HTTPException(503, "no room for this scan on the server", {"retry-after": "60"}) from None
        response.headers["Location"] = f"/api/jobs/{job.id}"
        return status_of(job)

    @app.get("/api/jobs/{job_id}", responses=missing)
    def ask_for_a_job(job: known) -> Status:
        return status_of(job)

    @app.delete("/api/jobs/{job_id}", status_code=204, responses=missing)
    def delete_a_job(job: known) -> None:
        jobs.delete(job)

    _add_files(app, jobs, known, missing)

    @app.get("/api/health", responses={403: refusals[403]})
    def health() -> Health:
        return Health(
            version=__version__,
            device=jobs.device,
            jobs=jobs.counts(),
            queue=jobs.queue,
            max_upload_mb=max_upload_mb,
            keep_minutes=jobs.keep_minutes,
        )


def _add_files(app, jobs, known, missing):
    """Adds the routes for the files of a job. known: type of an existing job; missing: responses if there is none."""

    def add(kind, name):
        early = {409: _response("the job is not done, or has failed")}
        content = {200: {"content": {_MEDIA[kind]: {}}}}
        answers = {**missing, **early, **content}

        @app.get(f"/api/jobs/{{job_id}}/{name}", summary=f"Fetch {name}", response_class=Response, responses=answers)
        def fetch(job: known):
            body = bundle(jobs, job) if kind == "all" else jobs.file(job, kind)
            if body is None:
                raise HTTPException(409, f"no result: the job is {job.state}")
            disposition = f'attachment; filename="{case_id(job.label)}{_NAMES[kind]}"'
            return Response(body, media_type=_MEDIA[kind], headers={"content-disposition": disposition})

    for kind, name in _FILES.items():
        add(kind, name)


def bundle(jobs, job):
    """Returns the bytes of a zip file with all results of a job, or None if there are none."""
    files = {_NAMES[kind]: jobs.file(job, kind) for kind in _FILES if kind != "all"}
    if None in files.values():
        return None
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, body in files.items():
            archive.writestr(case_id(job.label) + name, body)
    return content.getvalue()


def label_of(name):
    """Converts a file name to a label that is safe in headers, tables and file names: letters, digits, dots, hyphens and
    underscores, at most 100 of them."""
    return (
        re.sub(r"[^A-Za-z0-9._-]", "_", name.replace("\\", "/").rpartition("/")[2][-100:]).lstrip(".-") or "scan.nii.gz"
    )


def _response(text):
    return {"model": Problem, "description": text}


def _policy(*pages):
    """Returns a Content-Security-Policy that allows the inline scripts and styles of some pages, and no others."""

    def hashes(tag):
        found = (content for page in pages for content in re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.S))
        digests = (base64.b64encode(hashlib.sha256(content.encode()).digest()).decode() for content in found)
        return "".join(f" 'sha256-{digest}'" for digest in digests)

    policy = _POLICY | {f"{tag}-src": _POLICY[f"{tag}-src"] + hashes(tag) for tag in ("script", "style")}
    return "; ".join(f"{name} {value}" for name, value in policy.items())
