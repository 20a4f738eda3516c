"""Photos from a web address and from stdin: the same mask as of the file, or one line."""

import functools
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from objtune_cli.errors import InputError, ResourceError
from objtune_cli.store.project import find_project
from objtune_cli.workflow import photo_sources


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a server of the files in `tmp_path / "www"`."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "www").mkdir()
    handler = functools.partial(Quiet, directory=str(tmp_path / "www"))
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    httpd.server_close()
    thread.join()


def test_a_photo_by_its_address_gives_the_mask_of_the_file(cli, dog_photo: Path, server: str, tmp_path: Path) -> None:
    (tmp_path / "www" / "rex.jpg").write_bytes(dog_photo.read_bytes())
    assert cli("segment", f"{server}/rex.jpg?size=large", "--class", "dog").out == "mask/dog@1\n"
    done = cli("segment", dog_photo, "--class", "dog")
    assert done.out == "mask/dog@1\n", "the same bytes are the same work"
    kept = list(Path(".objtune/photos").iterdir())
    assert [file.suffix for file in kept] == [".jpg"] and kept[0].read_bytes() == dog_photo.read_bytes()
    assert str(kept[0]) in cli("gc", "--older-than", "0s", "--dry-run").out.replace("\\", "/")


def test_what_a_server_answers_is_said_in_one_line(cli, server: str, tmp_path: Path) -> None:
    done = cli("segment", f"{server}/nothing.jpg", "--class", "dog")
    assert done.code == 3 and "returned 404" in done.err
    (tmp_path / "www" / "page.html").write_text("<!doctype html><html></html>")
    done = cli("segment", f"{server}/page.html", "--class", "dog")
    assert done.code == 3 and "is a web page, not the picture itself" in done.err
    done = cli("segment", "http://127.0.0.1:9/a.jpg", "--class", "dog")
    assert done.code == 7 and "cannot be downloaded" in done.err
    (tmp_path / "www" / "empty.jpg").touch()
    assert "is empty" in cli("segment", f"{server}/empty.jpg", "--class", "dog").err


def test_a_photo_too_large_is_not_kept(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photo_sources, "MAX_BYTES", 1 << 20)
    (tmp_path / "www" / "big.jpg").write_bytes(bytes((1 << 20) + 1))
    with pytest.raises(InputError, match="has more than 1 MiB"):
        photo_sources.save_photo(find_project(tmp_path), f"{server}/big.jpg")
    assert not (tmp_path / ".objtune/photos").exists()


def test_a_server_that_never_answers_ends(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import socket

    monkeypatch.setattr(photo_sources, "TIMEOUT", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(ResourceError, match="timed out"):
            photo_sources.save_photo(find_project(tmp_path), f"http://127.0.0.1:{silent.getsockname()[1]}/a.jpg")


def test_a_photo_on_stdin_gives_the_mask_of_the_file(cli, dog_photo: Path) -> None:
    assert cli("segment", "-", "--class", "dog", stdin=dog_photo.read_bytes()).out == "mask/dog@1\n"
    assert cli("segment", dog_photo, "--class", "dog").out == "mask/dog@1\n"
    done = cli("segment", "-", "--class", "dog", stdin=b"")
    assert done.code == 3 and "stdin is empty" in done.err
    done = cli("train", "-", "--class", "dog", stdin=b"dog@1\n")
    assert done.code == 3 and "is not a picture" in done.err


def test_train_takes_an_address(cli, dog_photo: Path, server: str, tmp_path: Path) -> None:
    (tmp_path / "www" / "rex.jpg").write_bytes(dog_photo.read_bytes())
    done = cli("train", f"{server}/rex.jpg", "--class", "dog", "--dry-run", "--set", "train.batch_size=1")
    assert done.code == 0, done.err
    (tmp_path / "www" / "page.jpg").write_text("<html>no photo</html>")
    done = cli("train", f"{server}/page.jpg", "--class", "dog")
    assert done.code == 3 and f"{server}/page.jpg is a web page, not the picture" in done.err
    assert b"<html>no photo</html>" not in [file.read_bytes() for file in Path(".objtune/photos").glob("*")]
    done = cli("train", f"{server}/none.jpg", "--class", "dog")
    assert done.code == 3 and "returned 404" in done.err
