"""The directory of a zip archive, which zipfile reads as far as it makes sense."""

import zipfile

_END = b"PK\x05\x06"
_UNSAID = 0xFFFF
"""The number of entries where a directory of 64 bits has it."""


def check_all_listed(archive: zipfile.ZipFile) -> None:
    """Raises BadZipFile where entries are lost of which zipfile says nothing.

    A corrupt size of the directory leaves some out, and so does a name that becomes that of a
    folder or of a hidden file; each name stands before its entry once more.
    """
    for entry in archive.infolist():
        hidden = "/." in f"/{entry.filename}" and not entry.filename.startswith("__MACOSX")
        if entry.is_dir() or hidden:
            archive.open(entry).close()  # compares the names
    archive.fp.seek(0, 2)
    archive.fp.seek(max(0, archive.fp.tell() - 2**16 - 22))
    end = archive.fp.read()
    at = end.rfind(_END)
    said = int.from_bytes(end[at + 10 : at + 12], "little")
    found = len(archive.infolist())
    if said not in (_UNSAID, found):
        raise zipfile.BadZipFile(f"its directory should have {said} entries, and has {found}")
