"""Chromium in front of a server: the plain page, and OHIF with studies whose every pixel is known.

What stands on the canvas is held against pydicom's pixels, windowed by numpy (phantoms.py); nothing of ours
renders what is expected. The canvas shows an image enlarged, so it is read at the centre of each pixel of the
image. A phantom says how many grey levels the mean difference may be: 0.5 where nothing is lost (0.1 is what
rounding and reading between pixels make), 1 for lossy syntaxes, 5 for the one that pydicom can't decode here.

The screenshots of the README are made by this file, with HILUM_SCREENSHOTS=1.
"""

from __future__ import annotations

import base64
import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from makers import make_object
from peers import phantoms
from peers.phantoms import Phantom, Picture
from peers.serving import NotStarted, server
from PIL import Image

import hilum
from hilum.engine.importer import Options, import_paths

pytestmark = pytest.mark.peers

WAIT_MS = 60_000  # two cores, a software rasteriser and 15 MB of script
IMAGES = Path(__file__).resolve().parents[2] / "docs" / "images"
SCREENSHOTS = os.environ.get("HILUM_SCREENSHOTS") == "1"

# No "=": it would end a name's first component group. What runs is not there, which is an error of the page.
HOSTILE = "<b>bold</b><script>hostile()</script>"
ATTRIBUTE = """\"'><img src="x" onerror="hostile()">"""


def missing(words: str) -> None:
    """A skip, and a failure where CI is set."""
    if os.environ.get("CI"):
        pytest.fail(words)
    pytest.skip(words)


def playwright_of() -> Any:
    try:
        from playwright import sync_api
    except ImportError:
        missing("playwright is not here: install the peers extra")
    return sync_api


def expect(locator: Any) -> Any:
    """An assertion that waits until it is true."""
    return playwright_of().expect(locator)


@pytest.fixture(scope="session")
def objects() -> dict[str, list[Phantom]]:
    return {
        "stack": phantoms.stack(),
        "syntaxes": phantoms.syntaxes(),
        "ultrasound": phantoms.ultrasound(),
        "enhanced": phantoms.enhanced_mr(),
        "slide": phantoms.slide(),
        "pdf": phantoms.pdf(),
    }


@pytest.fixture(scope="session")
def url(
    objects: dict[str, list[Phantom]], program: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """A server over the phantoms with OHIF beside them, out of the user's cache or from npm."""
    folder = tmp_path_factory.mktemp("browser")
    with hilum.open(folder / "store", create=True) as store:
        for phantom in [one for several in objects.values() for one in several]:
            store.ingest(phantom.data)
        texts = ("patient_id", "study_description", "series_description", "accession", "study_id", "modality")
        for number, text in enumerate((HOSTILE, ATTRIBUTE), 1):
            uids = f"2.25.90{number}.1", f"2.25.90{number}.2", f"2.25.90{number}.3"
            others = dict.fromkeys(texts, text)
            store.ingest(make_object(*uids, name=HOSTILE, **others, study_date="20230101"))
    try:
        with server(folder / "store", "--viewer", "ohif") as found:
            yield found
    except NotStarted as failure:
        if "npm" not in str(failure):
            raise
        missing(f"OHIF can't be had: {failure}")


@pytest.fixture(scope="session")
def browser(program: Callable[[str], str]) -> Iterator[Any]:
    executable = program("chromium")
    with playwright_of().sync_playwright() as playwright:
        # Chromium's own sandbox does not start for root.
        browser = playwright.chromium.launch(
            executable_path=executable,
            args=["--no-sandbox", "--disable-dev-shm-usage", "--font-render-hinting=none"],
        )
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, url: str) -> Iterator[Any]:
    """A new page that was never here; complaints and requests to other hosts are failures."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True)
    # OHIF greets those who come first with a tour. The browser's own frames have no storage.
    context.add_init_script(
        "window.localStorage?.setItem('shownTours', '[\"basicViewerTour\"]');"
        "window.sessionStorage?.setItem('investigationalUseDialog', 'hidden');"
    )
    page = context.new_page()
    page.set_default_timeout(WAIT_MS)
    page.complaints = []
    page.on("pageerror", lambda failure: page.complaints.append(str(failure)))
    page.on(
        "request",
        lambda asked: (
            None
            if asked.url.startswith((url, "blob:", "data:", "chrome-extension:", "chrome://"))
            else page.complaints.append(f"asks {asked.url}")
        ),
    )
    yield page
    found = list(page.complaints)
    context.close()
    assert found == []


def picture_of(png: bytes) -> Picture:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


# --- The plain page ------------------------------------------------------------------


def status(page: Any, words: Any) -> None:
    """Wait until the list says this. Not by a function in the page: its policy forbids to evaluate text."""
    expect(page.locator("#status")).to_have_text(words, timeout=WAIT_MS)


def rows(page: Any) -> list[str]:
    page.wait_for_selector("#studies:not([aria-busy])")
    return [text.strip() for text in page.locator("#studies > li .who .main").all_inner_texts()]


def test_the_page_lists_the_studies_newest_first(page, url):
    page.goto(url)

    page.wait_for_selector("#studies > li")
    assert page.locator("#status").inner_text() == "1\u20138 of 8 studies"
    dates = page.locator("#studies .when .main").all_inner_texts()
    assert dates[:6] == [f"2024-01-0{day}" for day in range(6, 0, -1)]
    assert rows(page).count("Phantom, Bright") == 6


@pytest.mark.parametrize(
    ("fields", "count"),
    [
        ({"PatientName": "bright"}, 6),
        ({"PatientName": "phan*"}, 6),
        ({"PatientName": "phantom, bri"}, 6),
        ({"PatientName": "phantom, x"}, 0),
        ({"PatientID": "PH3"}, 1),
        ({"AccessionNumber": "A2"}, 1),
        ({"ModalitiesInStudy": "ct"}, 2),
        ({"from": "2024-01-02", "to": "2024-01-04"}, 3),
        ({"from": "2024-01-05"}, 2),
        ({"PatientName": "nobody"}, 0),
    ],
    ids=str,
)
def test_the_search_finds_what_is_asked_for(page, url, fields, count):
    page.goto(url)
    page.wait_for_selector("#studies > li")
    for name, value in fields.items():
        page.fill(f'[name="{name}"]', value)
    page.get_by_role("button", name="Search").click()

    words = "1 study" if count == 1 else f"{count} studies"
    status(page, re.compile(f"(of |^){words}$"))
    page.wait_for_selector("#studies:not([aria-busy])")
    assert page.locator("#studies details").count() == count

    page.reload()  # the address holds the search
    status(page, re.compile(f"(of |^){words}$"))
    page.get_by_role("button", name="Clear").click()
    status(page, "1\u20138 of 8 studies")


def test_a_study_opens_by_the_keyboard_to_series_with_pictures_of_their_pixels(page, url, objects):
    page.goto(f"{url}/#PatientID=PH1")
    page.wait_for_selector("#studies summary")
    page.locator("#studies summary").focus()
    page.keyboard.press("Enter")

    image = page.locator(".series img").first
    image.wait_for()
    size = image.evaluate("async image => (await image.decode(), [image.naturalWidth, image.naturalHeight])")
    body = page.request.get(image.evaluate("image => image.src")).body()
    seen = np.asarray(Image.open(io.BytesIO(body)).convert("L"), np.float64)

    assert size == [336, 252]  # 256 by 192, as large as the page wants it
    wanted = [
        np.asarray(Image.fromarray(one.pictures[0]).resize((336, 252), Image.Resampling.BILINEAR), np.float64)
        for one in objects["stack"]
    ]
    assert min(np.abs(seen - one).mean() for one in wanted) < 3


def test_the_links_of_a_study_lead_to_the_viewer_and_to_its_files(page, url, objects):
    page.goto(f"{url}/#PatientID=PH1")
    page.locator("#studies summary").click()
    viewed = page.get_by_role("link", name="Open in OHIF").get_attribute("href")
    assert viewed == f"ohif/viewer?StudyInstanceUIDs={objects['stack'][0].study}"

    with page.expect_download() as download:
        page.get_by_role("link", name="Download .zip").click()
    assert Path(download.value.path()).read_bytes()[:4] == b"PK\3\4"


def test_a_slide_is_opened_in_microscopy_mode(page, url, objects):
    page.goto(f"{url}/#PatientID=PH5")
    page.locator("#studies summary").click()

    viewed = page.get_by_role("link", name="Open in OHIF").get_attribute("href")
    assert viewed == f"ohif/microscopy?StudyInstanceUIDs={objects['slide'][0].study}"


def test_pages_of_the_list_are_turned_and_found_again(page, url, tmp_path):
    with hilum.open(tmp_path / "store", create=True) as store:
        for number in range(1, 61):
            store.ingest(
                make_object(
                    f"2.25.{number}.1", f"2.25.{number}.2", f"2.25.{number}.3", name=f"Number^{number:03}"
                )
            )
    with server(tmp_path / "store") as other:
        page.complaints = [one for one in page.complaints if other not in one]
        page.goto(f"{other}/#order=PatientName")
        status(page, "1\u201325 of 60 studies")
        assert rows(page)[0] == "Number, 001"
        assert page.get_by_role("button", name="Previous page").is_disabled()
        page.get_by_role("button", name="Next page").click()
        status(page, "26\u201350 of 60 studies")
        assert rows(page)[0] == "Number, 026"
        page.get_by_role("button", name="Next page").click()
        status(page, "51\u201360 of 60 studies")
        assert page.get_by_role("button", name="Next page").is_disabled()
        page.go_back()
        status(page, "26\u201350 of 60 studies")
    page.complaints = [one for one in page.complaints if other not in one]


def test_text_of_data_sets_is_shown_and_never_run(page, url):
    page.goto(f"{url}/#to=2023-12-31")
    status(page, "1\u20132 of 2 studies")
    assert rows(page) == [HOSTILE, HOSTILE]
    for text in (HOSTILE, ATTRIBUTE):
        page.locator("#studies > li", has=page.locator(".what", has_text=text)).locator("summary").click()
    expect(page.locator("ul.series")).to_have_count(2, timeout=WAIT_MS)
    titles = page.locator("ul.series .main").all_inner_texts()
    assert sorted(titles) == sorted([HOSTILE, ATTRIBUTE])
    page.fill('[name="PatientID"]', ATTRIBUTE)
    page.get_by_role("button", name="Search").click()
    status(page, "1\u20131 of 1 study")

    assert page.locator("#studies b, #studies script, #studies img[src='x']").count() == 0


def test_files_and_folders_that_are_dropped_are_stored_and_each_is_answered_for(page, url):
    files = {
        "good.dcm": make_object("2.25.77.1", "2.25.77.2", "2.25.77.3", name="Dropped^A"),
        "other.dcm": make_object("2.25.77.4", "2.25.77.2", "2.25.77.3", name="Dropped^A"),
        "letter.txt": b"no DICOM at all",
    }
    page.goto(url)
    page.wait_for_selector("#studies > li")
    page.evaluate(
        """files => {
            const data = new DataTransfer();
            for (const [name, text] of Object.entries(files)) {
                data.items.add(new File([Uint8Array.from(atob(text), c => c.charCodeAt(0))], name));
            }
            for (const kind of ["dragover", "drop"]) {
                document.body.dispatchEvent(
                    new DragEvent(kind, { dataTransfer: data, bubbles: true, cancelable: true }));
            }
        }""",
        {name: base64.b64encode(data).decode() for name, data in files.items()},
    )

    expect(page.locator("#upload-status")).to_have_text("2 files stored, 1 not", timeout=WAIT_MS)
    failed = page.locator("#outcomes .failed")
    assert failed.count() == 1
    assert failed.inner_text().startswith("letter.txt")
    assert len(failed.inner_text().splitlines()) == 2  # with the reason
    assert sorted(page.locator("#outcomes .stored").all_inner_texts()) == ["good.dcm", "other.dcm"]
    assert page.locator("#progress").get_attribute("value") == "1"
    page.wait_for_selector("#studies li:has-text('Dropped, A')")  # the list has them by itself


def test_chosen_files_are_stored_too(page, url, tmp_path):
    file = tmp_path / "chosen.dcm"
    file.write_bytes(make_object("2.25.78.1", "2.25.77.2", "2.25.78.3"))
    page.goto(url)
    page.set_input_files("#files", str(file))

    expect(page.locator("#upload-status")).to_have_text("1 file stored", timeout=WAIT_MS)
    page.get_by_role("button", name="Close").click()
    assert page.locator("#upload").is_hidden()


def test_a_server_that_refuses_is_quoted_and_no_riddle(page, url):
    page.goto(f"{url}/#PatientName=x&order=NoSuchAttribute")

    page.wait_for_selector("#error:not([hidden])")
    assert "NoSuchAttribute" in page.locator("#error").inner_text()


def test_nothing_is_wider_than_a_narrow_screen(page, url):
    page.set_viewport_size({"width": 360, "height": 740})
    page.goto(url)
    page.locator("#studies summary").first.click()
    page.wait_for_selector("ul.series")

    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_the_description_of_the_services_is_shown_without_another_host(page, url):
    page.goto(f"{url}/swagger/")

    page.wait_for_selector("#operations-Search-searchStudies")
    assert page.locator(".opblock").count() > 40


# --- OHIF ----------------------------------------------------------------------------

# Gives the canvas of the first viewport as PNG, and where the centres of three corner pixels of the image
# are on it.
READ = """
async ([name, frame]) => {
  const viewport = cornerstone.getRenderingEngines()[0].getViewports()[0];
  const ids = viewport.getImageIds();
  const index = ids.findIndex(id => id.includes(`/instances/${name}/frames/${frame}`));
  if (index < 0) throw new Error(`no image of ${name} in ${ids}`);
  await viewport.setImageIdIndex(index);
  viewport.resetProperties();
  const drawn = new Promise(done =>
    viewport.element.addEventListener("CORNERSTONE_IMAGE_RENDERED", done, { once: true }));
  viewport.render();
  await drawn;
  const image = viewport.getImageData();
  const [columns, rows] = image.dimensions;
  const canvas = viewport.getCanvas();
  const scale = canvas.width / canvas.clientWidth;
  const place = (column, row) =>
    viewport.worldToCanvas(image.imageData.indexToWorld([column, row, 0])).map(part => part * scale);
  return {
    columns, rows,
    corners: [place(0, 0), place(columns - 1, 0), place(0, rows - 1)],
    png: canvas.toDataURL("image/png").split(",")[1],
  };
}
"""
READY = """() => {
  const viewport = window.cornerstone?.getRenderingEngines?.()[0]?.getViewports()[0];
  return Boolean(viewport?.getCurrentImageId?.() && viewport.getImageData?.());
}"""


def open_study(page: Any, url: str, phantom: Phantom, mode: str = "viewer") -> None:
    page.goto(f"{url}/ohif/{mode}?StudyInstanceUIDs={phantom.study}")


def seen(page: Any, instance: str, frame: int) -> np.ndarray:
    """What the canvas shows at the centre of each pixel of the image: rows by columns by 3."""
    found = page.evaluate(READ, [instance, frame])
    canvas = picture_of(base64.b64decode(found["png"])).astype(np.float64)
    origin, right, down = (np.array(place) for place in found["corners"])
    row, column = np.mgrid[0 : found["rows"], 0 : found["columns"]].astype(np.float64)
    step_x, step_y = (right - origin) / (found["columns"] - 1), (down - origin) / (found["rows"] - 1)
    # Canvas pixel n covers n to n + 1: its centre is at n + 0.5.
    x = origin[0] + step_x[0] * column + step_y[0] * row - 0.5
    y = origin[1] + step_x[1] * column + step_y[1] * row - 0.5
    return bilinear(canvas, x, y)


def bilinear(picture: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    height, width = picture.shape[:2]
    x, y = np.clip(x, 0, width - 1.001), np.clip(y, 0, height - 1.001)
    left, top = x.astype(int), y.astype(int)
    fx, fy = (x - left)[..., None], (y - top)[..., None]
    above = picture[top, left] * (1 - fx) + picture[top, left + 1] * fx
    below = picture[top + 1, left] * (1 - fx) + picture[top + 1, left + 1] * fx
    return above * (1 - fy) + below * fy


def difference(found: np.ndarray, wanted: Picture) -> float:
    """The mean difference in grey levels."""
    if wanted.ndim == 2:
        wanted = np.repeat(wanted[..., None], 3, axis=-1)
    assert found.shape == wanted.shape
    return float(np.abs(found - wanted).mean())


def check(page: Any, several: Sequence[Phantom]) -> None:
    page.wait_for_function(READY)
    wrong = {}
    for phantom in several:
        for number, wanted in enumerate(phantom.pictures, 1):
            found = difference(seen(page, phantom.instance, number), wanted)
            if found > phantom.tolerance:
                wrong[f"{phantom.name}, frame {number}"] = round(found, 2)
    assert wrong == {}


def test_ohif_lists_the_studies(page, url):
    page.goto(f"{url}/ohif/")

    page.wait_for_selector("text=PH1")
    for number in range(1, 7):
        assert page.get_by_text(f"PH{number}", exact=True).count() == 1
    assert page.get_by_text("Transfer syntaxes").count() == 1


def test_ohif_shows_a_ct_stack(page, url, objects):
    open_study(page, url, objects["stack"][0])
    check(page, objects["stack"])


def test_ohif_shows_each_transfer_syntax(page, url, objects):
    open_study(page, url, objects["syntaxes"][0])
    check(page, objects["syntaxes"])


def test_ohif_shows_each_frame_of_an_ultrasound_in_its_colours(page, url, objects):
    open_study(page, url, objects["ultrasound"][0])
    check(page, objects["ultrasound"])


def test_ohif_shows_each_frame_of_an_enhanced_mr_in_its_own_window(page, url, objects):
    open_study(page, url, objects["enhanced"][0])
    check(page, objects["enhanced"])


def test_ohif_shows_a_slide_in_microscopy_mode(page, url, objects):
    open_study(page, url, objects["slide"][0], "microscopy")
    page.wait_for_selector(".DicomMicroscopyViewer canvas")
    # Image Orientation (Slide) has its top left corner at the right bottom.
    wanted = np.ascontiguousarray(np.rot90(objects["slide"][0].pictures[0], 2))

    def shown() -> float:
        screen = picture_of(page.locator(".DicomMicroscopyViewer").screenshot())
        return slide_difference(screen, wanted)

    for _ in range(60):
        if (found := shown()) < 3:
            return
        page.wait_for_timeout(500)
    pytest.fail(f"the mean difference is {found:.1f} grey levels")


def slide_difference(screen: Picture, wanted: Picture) -> float:
    """Mean difference over the upper two thirds of a slide that fits into the screen.

    It touches the left and right edge, where the viewport has its frame; its lower left has an overview.
    """
    middle = slice(screen.shape[1] // 2, screen.shape[1] * 3 // 4)
    lit = np.flatnonzero((screen[6:-6, middle].max(axis=2) > 30).mean(axis=1) > 0.9) + 6
    if not len(lit):
        return 255.0
    height = int(lit[-1] - lit[0] + 1)
    width = round(height * wanted.shape[1] / wanted.shape[0])
    if width > screen.shape[1] + 2:
        return 255.0
    drawn = np.asarray(Image.fromarray(wanted).resize((width, height), Image.Resampling.BILINEAR), np.float64)
    left = (screen.shape[1] - width) // 2
    rows, columns = slice(0, height * 2 // 3), slice(6, width - 20)
    part = screen[lit[0] :, max(left, 0) :].astype(np.float64)[rows, columns]
    return float(np.abs(part - drawn[rows, columns]).mean()) if part.size else 255.0


def test_ohif_shows_a_pdf(page, url, objects):
    open_study(page, url, objects["pdf"][0])
    page.wait_for_selector("object, embed, iframe")
    colour = np.array(phantoms.PDF_COLOUR)

    for _ in range(60):
        screen = picture_of(page.screenshot()).astype(int)
        part = (np.abs(screen - colour).max(axis=2) <= 3).mean()
        if part > 0.1:
            return
        page.wait_for_timeout(500)
    pytest.fail(f"{part:.1%} of the screen has the colour of the page")


# --- Pictures of the README ----------------------------------------------------------


@pytest.mark.skipif(not SCREENSHOTS, reason="HILUM_SCREENSHOTS=1 makes them")
def test_pictures_for_the_readme(page, tmp_path):
    with hilum.open(tmp_path / "store", create=True) as store:
        import_paths(store, [str(Path(pydicom.__file__).parent / "data" / "test_files")], Options())
    with server(tmp_path / "store", "--viewer", "ohif") as url:
        page.goto(f"{url}/#PatientID=021234567")
        viewed = page.locator("#studies summary")
        viewed.click()
        page.goto(f"{url}/{page.get_by_role('link', name='Open in OHIF').get_attribute('href')}")
        page.wait_for_function(READY)
        page.wait_for_timeout(3000)
        save(page.screenshot(), "viewer.png")
        page.goto(url)
        page.get_by_text("Citizen, Jan").wait_for()
        page.fill('[name="to"]', "2016-12-31")
        page.get_by_role("button", name="Search").click()
        page.locator("#studies summary", has_text="204").click()
        page.wait_for_timeout(2000)
        save(page.screenshot(), "page.png")
    page.complaints.clear()


def save(png: bytes, name: str) -> None:
    IMAGES.mkdir(parents=True, exist_ok=True)
    small = Image.open(io.BytesIO(png)).convert("RGB").quantize(255, dither=Image.Dither.NONE)
    small.save(IMAGES / name, optimize=True)
