"""Scenes in 3D, in millimetres, with PyVista: surfaces, captions, axes and scale bars; as pictures and in windows."""

import os
import sys

from hippo.files import atomic

import numpy as np
import pyvista as pv
from vtkmodules.vtkCommonCore import vtkLogger

VIEW = (1, 0.45, 0.35), (0, 0, 1)  # direction from the scene to the camera, and which way is up


def draw_scenes(scenes, interactive):
    """Writes the pictures of scenes and opens them in windows, if `interactive` is "true", or "auto" and there is a
    display."""
    if not has_display():
        vtkLogger.SetStderrVerbosity(vtkLogger.VERBOSITY_OFF)  # else VTK warns that there is none
    for path, (shape, draw) in scenes.items():
        size = (1500, 750) if shape == (1, 2) else (1100, 900)
        plotter = pv.Plotter(off_screen=True, shape=shape, window_size=size, border=False)
        draw(plotter)
        with atomic(path) as temporary:
            plotter.screenshot(temporary)
        plotter.close()
        print(f"wrote {path}")
    if interactive == "true" or (interactive == "auto" and has_display()):
        for path, (shape, draw) in scenes.items():
            plotter = pv.Plotter(shape=shape, title=path.stem)
            draw(plotter)
            plotter.show()


def has_display():
    """Whether this machine can open a window."""
    return sys.platform in ("win32", "darwin") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def surface(field, level, spacing_mm):
    """Returns the isosurface of an array (D, H, W) at a level, as a mesh in mm from the centre of its first voxel."""
    grid = pv.ImageData(dimensions=field.shape, spacing=spacing_mm)
    grid["value"] = field.astype(np.float32).ravel(order="F")
    return grid.contour([level], scalars="value")


def add_mask(plotter, mask, spacing_mm, colour, opacity=1.0, smooth=True):
    """Draws the surface of a boolean array (D, H, W), closed at its edges too; nothing if it is empty."""
    mesh = surface(np.pad(mask, 1), 0.5, spacing_mm)
    if mesh.n_points:
        mesh = mesh.translate([-s for s in spacing_mm])
        mesh = mesh.smooth_taubin(n_iter=20, pass_band=0.1) if smooth else mesh
        plotter.add_mesh(mesh, color=colour, opacity=opacity, smooth_shading=smooth)


def annotate(plotter, text, legend, view=VIEW):
    """Adds a caption, a legend and axes to a panel, and places its camera. legend: [[name, colour]]; view: see VIEW."""
    plotter.set_background("white")
    plotter.add_text(text, position="upper_edge", font_size=9, color="black")
    height = plotter.renderer.GetSize()[1]
    for line, (name, colour) in enumerate(reversed(legend)):  # VTK's own legend cuts long names off
        plotter.add_text(name, position=(0.7, (10 + 24 * line) / height), viewport=True, font_size=9, color=colour)
    plotter.add_axes(
        xlabel="right", ylabel="front", zlabel="up", color="black", line_width=3, viewport=(0, 0, 0.25, 0.25)
    )
    plotter.view_vector(view[0], viewup=view[1])


def add_bar(plotter, length_mm=10, view=VIEW):
    """Draws a scale bar below the meshes of a panel, across its view. Returns its entry in the legend."""
    low, high = np.reshape(plotter.bounds, (3, 2)).T
    across = np.cross(view[1], view[0]) / np.linalg.norm(np.cross(view[1], view[0]))
    middle = (low + high) / 2 - np.array(view[1]) * ((high - low) / 2 + length_mm / 3)
    ends = middle - across * length_mm / 2, middle + across * length_mm / 2
    plotter.add_mesh(pv.Line(*ends), color="black", line_width=4)
    return [f"bar: {length_mm} mm", "black"]
