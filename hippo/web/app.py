"""The web application: the page, its API, and the API's documentation."""

import base64
import contextlib
import hashlib
import io
import re
import zipfile
from pathlib import Path
from typing import Annotated

from hippo import __version__
from hippo.data.cases import case_id
from hippo.data.formats import ENDINGS
from hippo.web.answers import Choice, Health, Problem, Status
from hippo.web.gate import Gate
from hippo.web.worker import label_of

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import FileResponse, HTMLResponse
from fastapi.staticfiles import StaticFiles
from starlette.datastructures import UploadFile

FOLDER = Path(__file__).parent
GONE = "no such job: it was deleted, its time is over, or the server was started anew; send the scan again"
_FILES = {  # kind of a result: its name below the job, its type, and what it adds to the name of the scan
    "labels": ("labels.nii.gz", "application/gzip", "_hippocampus.nii.gz"),
    "volumes": ("volumes.csv", "text/csv", "_volumes.csv"),
    "picture": ("picture.png", "image/png", "_hippocampus.png"),
    "scan": ("scan.nii.gz", "application/gzip", ".nii.gz"),
    "all": ("all.zip", "application/zip", ".zip"),
}
_FORM = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["file"],
                "properties": {
                    "file": {
                        "type": "string",
                        "format": "binary",
                        "description": "a .nii, .nii.gz, .mgz or .mgh file, or a .zip file of DICOM",
                    }
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

    @app.get("/brain.png", include_in_schema=False)
    def picture():
        return FileResponse(FOLDER / "brain.png")

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

    unclear = {400: _response("no JSON"), 409: _response("nothing to choose, or no such series")}
    broken = {400: _response("a broken form, or one of more than a file"), 422: _response("no file in it")}

    @app.post("/api/jobs", status_code=202, responses={**refusals, **broken}, openapi_extra={"requestBody": _FORM})
    async def send_a_scan(request: Request, response: Response) -> Status:
        async with request.form(max_files=1, max_fields=1) as form:
            file = form.get("file")
            if not isinstance(file, UploadFile):
                raise HTTPException(422, "expected a form with a file under the name file")
            name = file.filename or ""
            ending = next((ending for ending in (*ENDINGS, ".zip") if name.lower().endswith(ending)), "")
            try:
                job = await run_in_threadpool(jobs.add, file.file, label_of(name), ending)
            except OSError:
                raise HTTPException(503, "no room for this scan on the server", {"retry-after": "60"}) from None
        response.headers["Location"] = f"/api/jobs/{job.id}"
        return _status_of(jobs, job)

    @app.get("/api/jobs/{job_id}", responses=missing)
    def ask_for_a_job(job: known) -> Status:
        return _status_of(jobs, job)

    @app.post("/api/jobs/{job_id}/series", status_code=202, responses={**missing, **unclear})
    def choose_a_series(job: known, choice: Choice) -> Status:
        if not jobs.choose(job, choice.id):
            raise HTTPException(409, "expected the id of one of the series of a job that is choosing")
        return _status_of(jobs, job)

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
            seconds=jobs.seconds,
            keep_minutes=jobs.keep_minutes,
        )


def _status_of(jobs, job):
    return Status(
        id=job.id,
        state=job.state,
        steps=list(job.steps),
        series=job.series,
        ahead=jobs.ahead_of(job),
        error=job.error,
        result=job.result,
        keep_minutes=jobs.keep_minutes,
    )


def _add_files(app, jobs, known, missing):
    """Adds the routes for the files of a job. known: type of an existing job; missing: responses if there is none."""

    def add(kind, name, media, ending):
        early = {409: _response("the job is not done, or has failed, or there is no such file")}
        answers = {**missing, **early, 200: {"content": {media: {}}}}

        @app.get(f"/api/jobs/{{job_id}}/{name}", summary=f"Fetch {name}", response_class=Response, responses=answers)
        def fetch(job: known):
            body = bundle(jobs, job) if kind == "all" else jobs.file(job, kind)
            if body is None:
                raise HTTPException(409, f"no {name}: the job is {job.state}")
            disposition = f'attachment; filename="{case_id(job.label)}{ending}"'
            return Response(body, media_type=media, headers={"content-disposition": disposition})

    for kind, about in _FILES.items():
        add(kind, *about)


def bundle(jobs, job):
    """Returns the bytes of a zip file with all results of a job, or None if there are none."""
    files = {ending: jobs.file(job, kind) for kind, (_, _, ending) in _FILES.items() if kind != "all"}
    if files[_FILES["labels"][2]] is None:
        return None
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for ending, body in files.items():
            if body is not None:
                archive.writestr(case_id(job.label) + ending, body)
    return content.getvalue()


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
