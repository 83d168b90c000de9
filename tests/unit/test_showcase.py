import base64
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from rich.table import Table

from worker.cli.showcase import Embeddings, Neighbour, Row, nearest, neighbour_rows, neighbour_table, write_page

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def _embeddings(*rows: Sequence[float]) -> Embeddings:
    return np.array(rows, np.float32)


def _png(colour: tuple[int, ...], size: tuple[int, int] = (8, 8)) -> bytes:
    file = io.BytesIO()
    Image.new("RGBA" if len(colour) == 4 else "RGB", size, colour).save(file, "PNG")
    return file.getvalue()


def _page(
    folder: Path, rows: Sequence[Row], files: Mapping[str, bytes], *, warning: str | None = None, limit: int = 10
) -> str:
    def read(name: str) -> bytes:
        if name not in files:
            raise FileNotFoundError(name)
        return files[name]

    path = folder / "page.html"
    facts = {"Model": "ViT-B-32", "Images per second": "212"}
    write_page(path, rows, read, title="A showcase", facts=facts, warning=warning, limit=limit)
    return path.read_text("utf-8")


def _thumbnails(page: str) -> list[Image.Image]:
    found = re.findall(r"url\(data:image/jpeg;base64,([A-Za-z0-9+/=]+)\)", page)
    return [Image.open(io.BytesIO(base64.b64decode(data))) for data in found]


def _colour(image: Image.Image, x: int, y: int) -> tuple[int, ...]:
    """Return the pixel, rounded to what JPEG keeps."""
    pixel = image.getpixel((x, y))
    assert isinstance(pixel, tuple)
    return tuple(round(value / 51) * 51 for value in pixel)


def _printed(table: Table, width: int) -> list[str]:
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(table)
    return console.export_text().splitlines()


class TestNearest:
    def test_the_nearest_neighbour_of_a_crop_is_its_own_photograph(self) -> None:
        photograph, other, crop = (1, 0, 0), (0, 1, 0), (0.8, 0.6, 0)

        indices, similarities = nearest(_embeddings(photograph, other, crop), 1)

        np.testing.assert_array_equal(indices, [[2], [2], [0]])
        np.testing.assert_allclose(similarities, [[0.8], [0.6], [0.8]], rtol=1e-6)

    def test_neighbours_come_from_the_nearest_to_the_farthest(self) -> None:
        indices, similarities = nearest(_embeddings((1, 0), (-1, 0), (0, 1), (0.6, 0.8)), 3)

        assert indices[0].tolist() == [3, 2, 1]
        np.testing.assert_allclose(similarities[0], [0.6, 0, -1], atol=1e-6)

    def test_the_length_of_an_embedding_makes_no_difference(self) -> None:
        _, similarities = nearest(_embeddings((3, 0), (100, 0)), 1)

        np.testing.assert_allclose(similarities, [[1], [1]])

    def test_a_duplicate_is_a_neighbour_but_a_picture_itself_never(self) -> None:
        indices, _ = nearest(_embeddings((1, 0), (1, 0), (1, 0)), 2)

        assert np.sort(indices).tolist() == [[1, 2], [0, 2], [0, 1]]

    def test_an_embedding_of_zeros_is_similar_to_nothing(self) -> None:
        indices, similarities = nearest(_embeddings((0, 0), (1, 0), (0, 1)), 2)

        assert (sorted(indices[0].tolist()), similarities[0].tolist()) == ([1, 2], [0, 0])

    def test_there_are_no_more_neighbours_than_other_pictures(self) -> None:
        indices, similarities = nearest(_embeddings((1, 0), (0, 1), (1, 1)), 5)

        assert (indices.shape, similarities.shape) == ((3, 2), (3, 2))

    def test_a_single_picture_has_no_neighbours(self) -> None:
        indices, similarities = nearest(_embeddings((1, 0)), 5)

        assert (indices.shape, similarities.shape) == ((1, 0), (1, 0))

    def test_blocks_find_what_one_sorted_matrix_of_all_similarities_does(self) -> None:
        embeddings = np.random.default_rng(7).normal(size=(1_300, 16)).astype(np.float32)
        unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
        every = unit @ unit.T
        np.fill_diagonal(every, -2)

        indices, similarities = nearest(embeddings, 4)

        np.testing.assert_array_equal(indices, np.argsort(-every, axis=1)[:, :4])
        np.testing.assert_allclose(similarities, -np.sort(-every, axis=1)[:, :4], rtol=1e-5)
        assert (str(indices.dtype), str(similarities.dtype)) == ("int64", "float32")


class TestNeighbourRows:
    def test_a_row_names_a_picture_and_its_neighbours(self) -> None:
        rows = neighbour_rows(["a", "b"], np.array([[1], [0]]), np.array([[0.5], [0.5]], np.float32))

        assert rows == [Row("a", (Neighbour("b", 0.5),)), Row("b", (Neighbour("a", 0.5),))]


class TestNeighbourTable:
    def test_a_row_shows_a_picture_and_its_neighbours_with_their_similarity(self) -> None:
        table = neighbour_table(["coffee", "cat"], np.array([[1], [0]]), np.array([[0.25], [0.25]], np.float32), 2)

        assert [line.rstrip() for line in _printed(table, 80)] == [
            "picture  neighbour 1",
            "─" * 21,
            "coffee   cat",
            "         0.2500",
            "cat      coffee",
            "         0.2500",
        ]

    def test_only_the_first_rows_are_shown_and_the_table_says_so(self) -> None:
        names = [f"picture {number}" for number in range(1_200)]
        table = neighbour_table(names, *nearest(np.eye(1_200, dtype=np.float32), 1), limit=3)

        assert table.row_count == 3
        assert "3 of 1,200 pictures" in _printed(table, 80)[-1]

    @pytest.mark.parametrize(("width", "k"), [(80, 3), (100, 4)])
    def test_three_neighbours_fit_into_80_columns_and_four_into_100(self, width: int, k: int) -> None:
        names = [f"2019/summer holiday/IMG_{number:04}.jpg" for number in range(6)]
        falling = _embeddings(*((1, number) for number in range(6)))
        table = neighbour_table(names, *nearest(falling, k), limit=1)

        lines = _printed(table, width)

        assert [name.rstrip() for name in lines[2].split("…")] == ["", *(name[-17:] for name in names[: k + 1])]
        assert max(map(len, lines)) <= width

    def test_a_name_is_never_read_as_markup(self) -> None:
        table = neighbour_table(["[red]a[/red]"], *nearest(_embeddings((1, 0)), 1), limit=1)

        assert "[red]a[/red]" in _printed(table, 80)[2]


class TestPage:
    ROWS = (Row("red.png", (Neighbour("blue.png", 0.98765),)), Row("blue.png", (Neighbour("red.png", 0.98765),)))
    FILES = {"red.png": _png(RED), "blue.png": _png(BLUE)}  # noqa: RUF012

    def test_the_page_shows_title_facts_names_and_similarities(self, tmp_path: Path) -> None:
        page = _page(tmp_path, self.ROWS, self.FILES)

        for text in (
            "<h1>A showcase</h1>",
            "<dt>Model</dt><dd>ViT-B-32</dd>",
            ">blue.png</h2>",
            ">blue.png</p>",
            "0.9877",
        ):
            assert text in page

    def test_the_page_needs_nothing_but_itself(self, tmp_path: Path) -> None:
        page = _page(tmp_path, self.ROWS, self.FILES)

        assert re.findall(r"<script|https?://|src=|href=|@import|url\((?!data:)", page) == []

    def test_a_picture_is_embedded_once_however_often_it_is_shown(self, tmp_path: Path) -> None:
        page = _page(tmp_path, self.ROWS, self.FILES)

        assert [_colour(image, 4, 4) for image in _thumbnails(page)] == [RED, BLUE]
        assert page.count('class="tile t0"') == page.count('class="tile t1"') == 2

    def test_a_thumbnail_is_at_most_160_pixels_on_its_longer_side(self, tmp_path: Path) -> None:
        page = _page(tmp_path, [Row("wide.png", ())], {"wide.png": _png(RED, (800, 400))})

        assert [(image.format, image.size) for image in _thumbnails(page)] == [("JPEG", (160, 80))]

    def test_a_thumbnail_stands_upright_as_its_exif_orientation_says(self, tmp_path: Path) -> None:
        stored = Image.new("RGB", (64, 32), BLUE)
        stored.paste(RED, (0, 0, 32, 32))
        exif = Image.Exif()
        exif[0x0112] = 6  # to be turned clockwise by a quarter
        file = io.BytesIO()
        stored.save(file, "JPEG", exif=exif, quality=95)

        (thumbnail,) = _thumbnails(_page(tmp_path, [Row("photo.jpg", ())], {"photo.jpg": file.getvalue()}))

        assert (thumbnail.size, _colour(thumbnail, 16, 8), _colour(thumbnail, 16, 56)) == ((32, 64), RED, BLUE)

    def test_what_is_transparent_is_white(self, tmp_path: Path) -> None:
        page = _page(tmp_path, [Row("clear.png", ())], {"clear.png": _png((255, 0, 0, 0))})

        assert [_colour(image, 4, 4) for image in _thumbnails(page)] == [WHITE]

    def test_sixteen_bits_of_grey_keep_their_shades(self, tmp_path: Path) -> None:
        file = io.BytesIO()
        Image.fromarray(np.full((8, 8), 0x6666, np.uint16)).save(file, "PNG")

        (thumbnail,) = _thumbnails(_page(tmp_path, [Row("deep.png", ())], {"deep.png": file.getvalue()}))

        assert _colour(thumbnail, 4, 4) == (0x66, 0x66, 0x66)

    @pytest.mark.parametrize("files", [{"broken.jpg": b"no image"}, {}], ids=["undecodable", "unreadable"])
    def test_a_picture_without_an_image_is_a_grey_tile(self, tmp_path: Path, files: Mapping[str, bytes]) -> None:
        page = _page(tmp_path, [Row("broken.jpg", (Neighbour("red.png", 0.5),))], {**self.FILES, **files})

        assert page.count('class="tile missing" role="img" aria-label="broken.jpg"') == 1
        assert len(_thumbnails(page)) == 1

    def test_a_warning_stands_in_a_banner(self, tmp_path: Path) -> None:
        page = _page(tmp_path, self.ROWS, self.FILES, warning="The weights are untrained")

        assert '<p class="warning" role="alert">The weights are untrained</p>' in page

    def test_without_a_warning_there_is_no_banner(self, tmp_path: Path) -> None:
        assert 'class="warning"' not in _page(tmp_path, self.ROWS, self.FILES)

    def test_only_the_first_rows_are_written_and_the_page_says_so(self, tmp_path: Path) -> None:
        page = _page(tmp_path, [Row(f"{number}.png", ()) for number in range(2_000)], self.FILES, limit=3)

        assert page.count("<article") == 3
        assert "The first 3 of 2,000 pictures." in page

    def test_a_name_is_never_read_as_html(self, tmp_path: Path) -> None:
        name = '"><img onerror=alert(1)>&.png'
        page = _page(tmp_path, [Row(name, ())], {name: _png(RED)})

        assert page.count("<img") == 0
        assert page.count("&#34;&gt;&lt;img onerror=alert(1)&gt;&amp;.png") == 3  # said, shown on hovering, and shown

    def test_a_page_of_no_pictures_is_written_too(self, tmp_path: Path) -> None:
        assert "<h1>A showcase</h1>" in _page(tmp_path, [], {})
