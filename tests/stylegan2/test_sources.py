"""Where networks to fine-tune from come from: names, paths, downloads, pickles."""

import contextlib
import hashlib
import http.client
import io
import threading
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from stylegan2 import sources
from stylegan2.cache import CACHE_VARIABLE
from stylegan2.config import TrainingOptions, resolve
from stylegan2.errors import StyleGAN2Error
from stylegan2.network_folder import read_config, save_weights, write_config
from stylegan2.networks.discriminator import Discriminator
from stylegan2.networks.generator import Generator
from stylegan2.sources import (
    NAMED_ADDRESSES,
    find_network_folder,
    find_networks,
    is_address,
    is_local_path,
)
from stylegan2.transfer import SourceNetworks, load_source, network_kwargs

# ----------------------------------------------------------------------------------------------------------
# Names, paths and addresses
# ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv(CACHE_VARIABLE, str(folder))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return folder


class Server:
    """Answers on 127.0.0.1: `files` by path, the rest with 404; `/short/…` and `/chunked/…` break off.

    `/endless/…` says no length and goes on until nobody listens any more.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.redirections: dict[str, str] = {}
        self.requests: list[str] = []
        self.sent = 0
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                server.requests.append(self.path)
                self.close_connection = True
                data = server.files.get(self.path)
                if self.path in server.redirections:
                    self.send_response(302)
                    self.send_header("Location", server.redirections[self.path])
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                if data is None:
                    self.send_error(404)
                    return
                self.send_response(200)
                if self.path.startswith("/chunked/"):
                    self.send_header("Transfer-Encoding", "chunked")
                    self.end_headers()
                    self.wfile.write(b"%x\r\n%s" % (2 * len(data), data))
                    return
                if self.path.startswith("/endless/"):
                    self.end_headers()
                    with contextlib.suppress(ConnectionError):
                        while True:
                            self.wfile.write(data)
                            server.sent += len(data)
                length = 2 * len(data) if self.path.startswith("/short/") else len(data)
                self.send_header("Content-Length", str(length))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        self.httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.httpd.server_address[1]}"

    def serve(self, path: str, data: bytes) -> str:
        self.files[path] = data
        return self.address + path


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.httpd.shutdown()
    thread.join()
    server.httpd.server_close()


@pytest.fixture
def no_import(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves the import out, so that a test sees the downloaded file itself."""
    monkeypatch.setattr(sources, "_imported", lambda path: path)
    monkeypatch.setattr(sources, "read_nvidia_pickle", lambda path: None)


def files_below(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def shipped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    folder = tmp_path / "pretrained"
    size: dict[str, Any] = {"c_dim": 0, "img_resolution": 16, "img_channels": 3}
    widths = {"channel_base": 64, "channel_max": 4}
    generator = Generator(**size, z_dim=5, w_dim=7, synthesis_kwargs=widths)
    discriminator = Discriminator(**size, **widths)
    save_weights(folder / "phantoms-16" / "generator.safetensors", generator)
    save_weights(folder / "phantoms-16" / "discriminator.safetensors", discriminator)
    networks = {"generator": generator.init_kwargs, "discriminator": discriminator.init_kwargs}
    write_config(folder / "phantoms-16", networks)
    (folder / "not-a-network").mkdir()
    monkeypatch.setattr(sources, "SHIPPED", folder)
    return folder


def test_a_shipped_network_is_found_by_its_name(shipped: Path) -> None:
    assert sources.shipped_names() == ["phantoms-16"]
    assert find_networks("phantoms-16") == shipped / "phantoms-16"
    assert not is_local_path("phantoms-16")
    assert SourceNetworks.load("phantoms-16").generator["z_dim"] == 5


@pytest.mark.parametrize("find", [find_network_folder, find_networks])
def test_a_name_that_is_also_a_local_folder_is_ambiguous(
    find: Callable[[str], Path], shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find("phantoms-16") == shipped / "phantoms-16"
    (tmp_path / "phantoms-16").mkdir()
    with pytest.raises(
        StyleGAN2Error, match=r"^phantoms-16 is the name of .* write \./phantoms-16 .*rename it"
    ):
        find("phantoms-16")
    assert find("./phantoms-16").resolve() == tmp_path / "phantoms-16"


def test_a_name_of_networks_to_download_may_be_ambiguous_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ffhq256").mkdir()
    with pytest.raises(StyleGAN2Error, match=r"write \./ffhq256"):
        find_networks("ffhq256")
    assert find_networks("./ffhq256").resolve() == tmp_path / "ffhq256"
    assert find_network_folder("ffhq256") == Path("ffhq256")


def test_nothing_is_shipped_where_the_folder_is_absent(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sources, "SHIPPED", tmp_path / "absent")
    assert sources.shipped_names() == []


def test_every_shipped_network_can_be_loaded() -> None:
    assert "phantom128" in sources.shipped_names()
    for name in sources.shipped_names():
        networks = SourceNetworks.load(name)
        assert networks.generator["img_resolution"] == networks.discriminator["img_resolution"]


def test_an_unknown_name_lists_the_known_ones(shipped: Path) -> None:
    with pytest.raises(StyleGAN2Error) as caught:
        find_networks("ffhq128")
    assert "there is no 'ffhq128'" in str(caught.value)
    for name in ("phantoms-16", "ffhq256", "ffhq512", "ffhq1024", "celebahq256", "lsundog256"):
        assert name in str(caught.value)


@pytest.mark.parametrize(
    "init", ["https://example.org/net.pkl", "http://example.org/net.pkl", *NAMED_ADDRESSES]
)
def test_addresses_and_their_names_are_no_paths(init: str) -> None:
    assert is_address(init)
    assert not is_local_path(init)


@pytest.mark.parametrize("init", ["models/gan", "net.pkl", "/https/net.pkl", "FFHQ256"])
def test_everything_else_is_a_path(init: str) -> None:
    assert is_local_path(init)


def test_names_stand_for_the_addresses_of_public_pickles(
    monkeypatch: pytest.MonkeyPatch, cache: Path, no_import: None
) -> None:
    def download(address: str, target: Path) -> None:
        target.parent.mkdir(parents=True)
        target.write_text(address)

    monkeypatch.setattr(sources, "_download", download)
    address = find_networks("ffhq256").read_text()
    assert address.startswith("https://") and address.endswith("/ffhq-res256-mirror-paper256-noaug.pkl")


def test_a_download_is_kept_with_its_checksum(server: Server, cache: Path, no_import: None) -> None:
    address = server.serve("/some/net.pkl?version=2", b"networks")
    path = find_networks(address)
    assert path.read_bytes() == b"networks"
    assert path.is_relative_to(cache)
    assert path.name.endswith("-net.pkl")
    record = path.with_name(f"{path.name}.sha256")
    assert record.read_text() == hashlib.sha256(b"networks").hexdigest() + "\n"
    assert find_networks(address) == path
    assert len(server.requests) == 1
    assert files_below(cache) == [path.name, record.name]
    other = find_networks(server.serve("/other/net.pkl", b"other"))
    assert (path.read_bytes(), other.read_bytes()) == (b"networks", b"other")


def test_a_file_that_changed_since_its_download_is_refused(
    server: Server, cache: Path, no_import: None
) -> None:
    address = server.serve("/net.pkl", b"networks")
    path = find_networks(address)
    path.write_bytes(b"tampered")
    with pytest.raises(
        StyleGAN2Error, match=r"SHA-256 is \w{64}, but .*delete the file to download it again"
    ):
        find_networks(address)
    path.unlink()
    assert find_networks(address).read_bytes() == b"networks"
    assert len(server.requests) == 2


def test_another_file_at_the_same_address_is_refused(server: Server, cache: Path, no_import: None) -> None:
    path = find_networks(server.serve("/net.pkl", b"networks"))
    path.unlink()
    with pytest.raises(StyleGAN2Error, match=r"and .*net\.pkl\.sha256 as well if the address has a new file"):
        find_networks(server.serve("/net.pkl", b"replaced"))


@pytest.mark.parametrize("kind", ["short", "chunked"])
def test_a_download_that_breaks_off_leaves_nothing(kind: str, server: Server, cache: Path) -> None:
    address = server.serve(f"/{kind}/net.pkl", b"networks")
    with pytest.raises(StyleGAN2Error, match=rf"^init: {address} broke off in the middle; try again$"):
        find_networks(address)
    assert files_below(cache) == []


def test_a_missing_file_is_an_error(server: Server, cache: Path) -> None:
    with pytest.raises(StyleGAN2Error, match=r"cannot download .*/absent\.pkl \(HTTP Error 404: Not Found\)"):
        find_networks(f"{server.address}/absent.pkl")
    assert files_below(cache) == []


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:1/net.pkl", "http://127.0.0.1:x/net.pkl", "https://", "https://a b/c"]
)
def test_an_address_that_nobody_answers_at_is_an_error(address: str, cache: Path) -> None:
    with pytest.raises(StyleGAN2Error, match=r"cannot download .*; check address and connection"):
        find_networks(address)
    assert files_below(cache) == []


def test_a_redirection_to_an_address_without_encryption_is_refused(server: Server, cache: Path) -> None:
    server.redirections["/net.pkl"] = "http://example.org/net.pkl"
    with pytest.raises(
        StyleGAN2Error, match=r"/net\.pkl leads to http://example\.org/net\.pkl, which is not encr"
    ):
        find_networks(f"{server.address}/net.pkl")
    assert files_below(cache) == []


@pytest.mark.parametrize("to", ["http://example.org/net.pkl", "http://127.0.0.1:1/net.pkl", "ftp://a.org/b"])
def test_https_does_not_lead_elsewhere(to: str) -> None:
    request = urllib.request.Request("https://example.org/net.pkl")
    arguments = (io.BytesIO(), 302, "Found", http.client.HTTPMessage())
    with pytest.raises(
        StyleGAN2Error, match=f"^init: https://example.org/net.pkl leads to {to}, which is not"
    ):
        sources._SafeRedirects().redirect_request(request, *arguments, to)
    followed = sources._SafeRedirects().redirect_request(request, *arguments, "https://a.org/b")
    assert followed is not None and followed.full_url == "https://a.org/b"


def test_other_redirections_are_followed(server: Server, cache: Path, no_import: None) -> None:
    server.redirections["/net.pkl"] = server.serve("/moved.pkl", b"networks")
    assert find_networks(f"{server.address}/net.pkl").read_bytes() == b"networks"


def test_an_interrupted_download_leaves_nothing(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(address: str, source: Any, target: Any) -> int:
        target.write(source.read(3))
        raise KeyboardInterrupt

    monkeypatch.setattr(sources, "_copy", interrupted)
    with pytest.raises(KeyboardInterrupt):
        find_networks(server.serve("/net.pkl", b"networks"))
    assert files_below(cache) == []


# ----------------------------------------------------------------------------------------------------------
# Pickles
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plain", "endless"])
def test_a_download_that_is_too_large_is_refused(
    kind: str, server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what the server says, before anything is written; else as soon as it shows."""
    monkeypatch.setattr(sources, "MAX_DOWNLOAD_BYTES", 50_000)
    monkeypatch.setattr(sources, "_CHUNK", 1_000)
    address = server.serve(f"/{kind}/net.pkl", bytes(70_000 if kind == "plain" else 1_000))
    writes: list[Path] = []
    opened = Path.open
    monkeypatch.setattr(Path, "open", lambda path, *args: writes.append(path) or opened(path, *args))
    size = "70,000" if kind == "plain" else r"5[01],\d{3}"
    with pytest.raises(StyleGAN2Error, match=rf"^init: {address} sends {size} bytes.*at most 50,000; check"):
        find_networks(address)
    assert files_below(cache) == []
    assert len(writes) == (kind == "endless")


def test_a_download_of_exactly_the_largest_size_is_taken(
    server: Server, cache: Path, no_import: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "MAX_DOWNLOAD_BYTES", 8)
    assert find_networks(server.serve("/net.pkl", b"networks")).read_bytes() == b"networks"


@pytest.mark.parametrize("depth", [100, 200_000])
def test_a_config_of_nested_brackets_is_an_error(depth: int, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[" * depth + "]" * depth)
    with pytest.raises(
        StyleGAN2Error, match=r"config\.json(: expected \"kind\"| is not valid JSON \(.*recursion)"
    ):
        read_config(tmp_path)


@pytest.fixture
def pickled(stylegan2_reference: Any) -> bytes:
    data: bytes = (stylegan2_reference.folder / "nvidia_format_stripped.pkl").read_bytes()
    return data


@pytest.mark.shared
def test_a_pickle_is_downloaded_imported_and_then_remembered(
    pickled: bytes, server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = server.serve("/net.pkl", pickled)
    source = SourceNetworks.load(address)
    assert source.folder == cache / "imported" / hashlib.sha256(pickled).hexdigest()
    options = TrainingOptions(resolution=source.generator["img_resolution"], batch=4, init=address)
    c_dim = source.generator["c_dim"]
    generator_kwargs, discriminator_kwargs = network_kwargs(
        resolve(options, source=source.architecture), source.generator["img_channels"], c_dim, source
    )
    average, discriminator = Generator(**generator_kwargs), Discriminator(**discriminator_kwargs)
    load_source(source, Generator(**generator_kwargs), average, discriminator)
    assert average.img_resolution == discriminator.img_resolution

    def unexpected(path: Path) -> None:
        raise AssertionError("imported again")

    monkeypatch.setattr(sources, "read_nvidia_pickle", unexpected)
    assert SourceNetworks.load(address) == source
    assert server.requests == ["/net.pkl"]


def test_a_web_page_is_not_remembered_as_the_file(server: Server, cache: Path) -> None:
    address = server.serve("/net.pkl", b"<!DOCTYPE html><p>Log in first</p>")
    for _ in range(2):
        with pytest.raises(StyleGAN2Error):
            find_networks(address)
    assert server.requests == ["/net.pkl"] * 2
    assert files_below(cache) == []


@pytest.mark.parametrize("address", ["http://example.org/net.pkl", "https://[bad/net.pkl"])
def test_unusable_addresses_are_errors(address: str, cache: Path) -> None:
    with pytest.raises(StyleGAN2Error, match="init: "):
        find_networks(address)


@pytest.mark.shared
def test_the_same_pickle_on_disk_is_the_same_networks(
    pickled: bytes, server: Server, cache: Path, tmp_path: Path
) -> None:
    (tmp_path / "local.pkl").write_bytes(pickled)
    local = find_networks(str(tmp_path / "local.pkl"))
    assert local == find_networks(server.serve("/net.pkl", pickled))


@pytest.mark.shared
def test_an_unusable_pickle_leaves_no_networks_behind(pickled: bytes, cache: Path, tmp_path: Path) -> None:
    (tmp_path / "half.pkl").write_bytes(pickled[: len(pickled) // 2])
    for _ in range(2):
        with pytest.raises(StyleGAN2Error):
            find_networks(str(tmp_path / "half.pkl"))
    assert files_below(cache) == []
