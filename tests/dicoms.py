"""What the tests of DICOM share: series that pydicom writes, of arrays, and where the real ones are."""

import zipfile

import numpy as np
import pytest
from conftest import ROOT

REAL = ROOT / "dicom"  # cd.zip, highres.zip and thick_prone.zip; see .ci/run
real = pytest.mark.skipif(not (REAL / "cd.zip").is_file(), reason="no real series in dicom/")
SECRETS = ("SECRET", "19000101", "Prisma Health")
MR, CT = "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"


def slices_of(array, voxel_mm=(1.0, 1.0, 1.0), number=4, uid="1.2.3.4", **tags):
    """pydicom's data sets of the axial slices of an array (D, H, W) in RAS, with SECRETS in their headers.

    tags: further values by pydicom's keywords; None: without this tag.
    """
    pydicom = pytest.importorskip("pydicom")
    common = {
        "SOPClassUID": MR,
        "Modality": "MR",
        "StudyInstanceUID": f"{uid}.1",
        "SeriesInstanceUID": f"{uid}.{number}",
        "SeriesNumber": number,
        "SeriesDescription": "SECRET t1_mprage",
        "PatientName": "SECRET^NAME",
        "PatientID": "SECRET",
        "PatientBirthDate": "19000101",
        "InstitutionName": "SECRET",
        "ImageComments": "SECRET",
        "MRAcquisitionType": "3D",
        "ScanningSequence": ["GR", "IR"],
        "EchoTime": 3,
        "InversionTime": 900,
        "RepetitionTime": 2000,
        "SliceThickness": voxel_mm[2],
        "PixelSpacing": [voxel_mm[1], voxel_mm[0]],
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "PatientPosition": "HFS",
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 0,
    }
    stored, found = np.asarray(array)[::-1, ::-1].astype("<u2"), []  # DICOM counts to the left and to the back
    for k in range(array.shape[2]):
        plane = stored[:, :, k].T
        own = {"SOPInstanceUID": f"{uid}.{number}.{k + 1}", "InstanceNumber": k + 1, "Rows": plane.shape[0]}
        own |= {"Columns": plane.shape[1], "ImagePositionPatient": [0, 0, k * voxel_mm[2]]}
        dataset = pydicom.Dataset()
        for keyword, value in (common | own | tags).items():
            if value is not None:
                setattr(dataset, keyword, value(k) if callable(value) else value)
        dataset.PixelData = plane.tobytes()
        found.append(dataset)
    return found


def save(slices, folder, name="IM{:04d}", preamble=True, syntax=EXPLICIT):
    """Writes data sets as files into a folder."""
    import pydicom

    folder.mkdir(parents=True, exist_ok=True)
    for number, dataset in enumerate(slices):
        path = folder / name.format(number)
        if preamble:
            dataset.file_meta = pydicom.dataset.FileMetaDataset()
            dataset.file_meta.TransferSyntaxUID = syntax
            dataset.save_as(path, enforce_file_format=True)
        else:
            dataset.save_as(path, implicit_vr=True, little_endian=True)
    return folder


def packed(folder, path):
    """Packs the files of a folder into a .zip file."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder))
    return path


def secrets_in(folder):
    """Files in a folder that hold a secret in their name or content, unpacked too."""
    import gzip

    found = []
    for path in folder.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        if content[:2] == b"\x1f\x8b":
            content += gzip.decompress(content)
        found += [path for word in SECRETS if word in path.name or word.encode() in content]
    return found
