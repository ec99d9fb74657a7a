"""Where networks to fine-tune from are found: by name, by address or by path.

Three kinds of source become one thing, the folder of a trained GAN: a folder is taken as it is; a pickle in
NVIDIA's format is imported without executing it; an address is downloaded first. What was imported is kept in
a cache under the SHA-256 of the file.
"""

import hashlib
import http.client
import logging
import os
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import IO, BinaryIO

from stylegan2.cache import CACHE_VARIABLE, cache_folder
from stylegan2.errors import StyleGAN2Error
from stylegan2.files import write_atomically
from stylegan2.network_folder import CONFIG
from stylegan2.nvidia import read_nvidia_pickle, write_imported

SHIPPED = Path(__file__).parent / "pretrained"
_PUBLIC = "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/transfer-learning-source-nets/"
NAMED_ADDRESSES = {
    "ffhq256": _PUBLIC + "ffhq-res256-mirror-paper256-noaug.pkl",
    "ffhq512": _PUBLIC + "ffhq-res512-mirror-stylegan2-noaug.pkl",
    "ffhq1024": _PUBLIC + "ffhq-res1024-mirror-stylegan2-noaug.pkl",
    "celebahq256": _PUBLIC + "celebahq-res256-mirror-paper256-kimg100000-ada-target0.5.pkl",
    "lsundog256": _PUBLIC + "lsundog-res256-paper256-kimg100000-noaug.pkl",
}
MAX_DOWNLOAD_BYTES = 4 * 2**30  # networks of 1,024 pixels have some hundred million bytes
_CHUNK = 1 << 20
_TIMEOUT_SECONDS = 60
_LOOPBACK = ("localhost", "127.0.0.1", "::1")

log = logging.getLogger(__name__)


def shipped_names() -> list[str]:
    """Names of the networks that come with this package."""
    return sorted(path.parent.name for path in SHIPPED.glob(f"*/{CONFIG}"))


def find_network_folder(network: str) -> Path:
    """Give the folder of a trained GAN, named by its path, or by its name if it comes with the package.

    Raises:
        StyleGAN2Error: the name also is that of something in the current folder.
    """
    if network not in shipped_names():
        return Path(network)
    _check_unambiguous(network, "a network that comes with this package")
    return SHIPPED / network


def _check_unambiguous(name: str, what: str) -> None:
    if os.path.lexists(name):
        raise StyleGAN2Error(
            f"{name} is the name of {what}, and there is a {name} in this folder; write ./{name} for that "
            "one, or rename it to have the other"
        )


def is_address(init: str) -> bool:
    """Whether `init` names something to download."""
    return init in NAMED_ADDRESSES or init.startswith(("https://", "http://"))


def is_local_path(init: str) -> bool:
    """Whether `init` is a path: neither an address nor a shipped network."""
    return not is_address(init) and init not in shipped_names()


def find_networks(init: str) -> Path:
    """Give the folder of the networks that `init` stands for, downloading and importing as needed.

    Args:
        init: a name (`NAMED_ADDRESSES`, `shipped_names()`), an address, a pickle in NVIDIA's format, or the
            folder of a trained GAN.

    Raises:
        StyleGAN2Error: when it is none of these, or a name that something in the current folder has, too;
            when it cannot be downloaded, differs from what was downloaded before, or is not usable.
    """
    if init in shipped_names():
        return find_network_folder(init)
    if init in NAMED_ADDRESSES:
        _check_unambiguous(init, "networks to download")
    path = Path(init)
    try:
        if is_address(init):
            return _imported(_downloaded(NAMED_ADDRESSES.get(init, init)))
        if path.is_dir():
            return path
        if path.is_file():
            return _imported(path)
    except (OSError, ValueError) as error:
        if isinstance(error, StyleGAN2Error):
            raise
        raise StyleGAN2Error(
            f"init: {init} cannot be used ({error}); check address or path, and that {cache_folder()} can "
            f"be written to (${CACHE_VARIABLE} names another folder)"
        ) from None
    names = ", ".join([*shipped_names(), *NAMED_ADDRESSES])
    raise StyleGAN2Error(
        f"init: there is no {init!r}; expected one of {names}, an https address, a file or the folder of a "
        "trained GAN"
    )


def _downloaded(address: str) -> Path:
    """Download once; the checksum of the first download is recorded and later ones must agree with it."""
    parts = urllib.parse.urlparse(address)
    if not _is_safe(address):
        raise StyleGAN2Error(f"init: {address} is not encrypted; give an https address, or a file")
    key = hashlib.sha256(address.encode()).hexdigest()[:16]
    name = Path(parts.path).name or "networks.pkl"
    target = cache_folder() / "downloads" / f"{key}-{name}"
    record = target.with_name(f"{target.name}.sha256")
    if not target.exists():
        log.info("downloading %s; its licence is that of its publisher, see docs/stylegan2.md", address)
        _download(address, target)
        try:
            read_nvidia_pickle(target)  # a web page, say, must not be remembered as the file
        except StyleGAN2Error:
            target.unlink()
            raise
    checksum = file_sha256(target)
    if not record.exists():
        write_atomically(record, f"{checksum}\n".encode())
    recorded = record.read_text().strip()
    if checksum != recorded:
        raise StyleGAN2Error(
            f"{target}: SHA-256 is {checksum}, but the first download of {address} had {recorded}; "
            f"delete the file to download it again, and {record.name} as well if the address has a new file"
        )
    return target


def _is_safe(address: str) -> bool:
    parts = urllib.parse.urlparse(address)
    return parts.scheme == "https" or parts.hostname in _LOOPBACK


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirections, but from what is encrypted only to what is."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        """Give the request for the new address.

        Raises:
            StyleGAN2Error: it is not encrypted.
        """
        encrypted = urllib.parse.urlparse(newurl).scheme == "https"
        if not encrypted and (req.type == "https" or not _is_safe(newurl)):
            fp.close()
            raise StyleGAN2Error(
                f"init: {req.full_url} leads to {newurl}, which is not encrypted; give another https "
                "address, or fetch the file elsewhere and give its path"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _download(address: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        opener = urllib.request.build_opener(_SafeRedirects())
        with opener.open(address, timeout=_TIMEOUT_SECONDS) as response:
            length = response.headers.get("Content-Length")
            expected = None if length is None else int(length)
            _check_size(address, expected or 0)
            with part.open("wb") as file:
                received = _copy(address, response, file)
        if expected is not None and received != expected:
            raise http.client.IncompleteRead(b"", expected - received)
        part.replace(target)
    except http.client.IncompleteRead:
        raise StyleGAN2Error(f"init: {address} broke off in the middle; try again") from None
    except StyleGAN2Error:
        raise
    except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as error:
        if isinstance(error, urllib.error.HTTPError):  # is a response, too
            error.close()
        raise StyleGAN2Error(
            f"init: cannot download {address} ({error}); check address and connection, or fetch the file "
            "elsewhere and give its path"
        ) from None
    finally:
        part.unlink(missing_ok=True)


def _copy(address: str, source: BinaryIO, target: BinaryIO) -> int:
    """Copy to the end, but no more than is allowed: a server need not say how much it sends, nor stop."""
    received = 0
    while chunk := source.read(_CHUNK):
        received += len(chunk)
        _check_size(address, received)
        target.write(chunk)
    return received


def _check_size(address: str, size: int) -> None:
    if size > MAX_DOWNLOAD_BYTES:
        raise StyleGAN2Error(
            f"init: {address} sends {size:,} bytes or more, expected a network of at most "
            f"{MAX_DOWNLOAD_BYTES:,}; check the address, or fetch the file elsewhere and give its path"
        )


def _imported(pickle: Path) -> Path:
    """Import a pickle into the cache, once for each content."""
    folder = cache_folder() / "imported" / file_sha256(pickle)
    if not (folder / CONFIG).exists():
        networks = read_nvidia_pickle(pickle)
        try:
            write_imported(networks, folder)
        except (StyleGAN2Error, OSError):
            if not (folder / CONFIG).exists():  # otherwise another process was faster
                raise
    return folder


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
