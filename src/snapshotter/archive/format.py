"""
The tar format as packing and unpacking share it: file types, and the PAX headers for times and extended attributes.
"""

import stat
import tarfile

CHUNK_SIZE = 1 << 20  # of file content that is copied at a time, in bytes

XATTR = "SCHILY.xattr."
"""The prefix of the header that holds an extended attribute."""

DEVICES = {tarfile.CHRTYPE: stat.S_IFCHR, tarfile.BLKTYPE: stat.S_IFBLK, tarfile.FIFOTYPE: stat.S_IFIFO}
"""The file types that mknod(2) makes, by their types in a tar."""

TYPES = {file_type: type_ for type_, file_type in DEVICES.items()} | {
    stat.S_IFREG: tarfile.REGTYPE,
    stat.S_IFDIR: tarfile.DIRTYPE,
    stat.S_IFLNK: tarfile.SYMTYPE,
}
"""The types in a tar, by file type; a socket has none."""


def xattr_header(name: str) -> str:
    """
    Return the header that holds the extended attribute *name*.

    As in GNU tar, "=" is escaped, because a header's name ends at the first one.
    """
    return XATTR + name.replace("%", "%25").replace("=", "%3D")


def xattr_name(header: str) -> str:
    """
    Return the name of the extended attribute that *header* holds.
    """
    return header.removeprefix(XATTR).replace("%3D", "=").replace("%25", "%")


def attributes(member: tarfile.TarInfo) -> dict[str, bytes]:
    """
    Return the extended attributes of *member* by name.
    """
    return {
        xattr_name(header): value.encode("utf-8", "surrogateescape")
        for header, value in member.pax_headers.items()
        if header.startswith(XATTR)
    }


def format_time(nanoseconds: int) -> str:
    """
    Return a time as a header has it: decimal seconds since the epoch.
    """
    seconds, rest = divmod(abs(nanoseconds), 1_000_000_000)
    return f"{'-' * (nanoseconds < 0)}{seconds}.{rest:09}"


def parse_time(decimal: str) -> int:
    """
    Return the time of a header in nanoseconds since the epoch; further digits are cut off.

    Raises:
        ValueError: *decimal* is not a number.
    """
    seconds, _, rest = decimal.lstrip("-").partition(".")
    value = int(seconds or 0) * 1_000_000_000 + int(rest[:9].ljust(9, "0"))
    return -value if decimal.startswith("-") else value
