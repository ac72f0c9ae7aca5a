"""The figures of the results in a folder, each with its table, for a paper."""

from collections import Counter
from pathlib import Path

from interp.reports.report import Picture
from interp.reports.sections import files_in, sections_of


def figures_of(path: Path) -> dict[str, Picture]:
    """The figures that a report of these results would have, by name for `interp.plots.save`.

    A name is the kind of the figure; of several of one kind, each has its folder (or its file)
    after a hyphen.
    """
    pictures = [
        (file, kind, picture)
        for file in files_in(path)
        for section in sections_of(file)
        for picture in section.pictures
        if (kind := getattr(picture.drawing, "__name__", ""))
    ]
    root = path if path.is_dir() else path.parent
    folders = [file.parent.relative_to(root).as_posix().replace("/", "_") for file, *_ in pictures]
    kinds = Counter(kind for _, kind, _ in pictures)
    places = Counter(zip((kind for _, kind, _ in pictures), folders, strict=True))
    named: dict[str, Picture] = {}
    for (file, kind, picture), folder in zip(pictures, folders, strict=True):
        parts = [part for part in (folder,) if part != "." and kinds[kind] > 1]
        parts += [file.stem] if places[kind, folder] > 1 else []
        named["-".join([kind, *parts])] = picture
    return named
