"""The first sheet of an Excel file, as CSV."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from rec_jax.data import xlsx
from rec_jax.data.fetch import fetch
from rec_jax.data.xlsx import sheet_to_csv
from rec_jax.errors import InputError

_MAIN = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
_NS = f'xmlns="{_MAIN}"'
_OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
_PACKAGE = "http://schemas.openxmlformats.org/package/2006"
_TYPE = "application/vnd.openxmlformats-officedocument.spreadsheetml"
SHEET = f"""<worksheet {_NS}><sheetData>
<row r="1"><c r="A1" t="s"><v>0</v></c><c r="B1" t="s"><v>1</v></c><c r="C1" t="inlineStr"><is>
<t>when</t></is></c></row>
<row r="2"><c r="A2"><v>17850</v></c><c r="B2" t="s"><v>2</v></c>
<c r="C2" s="1"><v>40513.35138888889</v></c></row>
<row r="3"><c r="B3"><v>2.55</v></c><c r="C3" s="2"><v>40514</v></c></row>
<row r="4"><c r="A4" t="inlineStr"><is><t>85123A</t></is></c><c r="B4"><v>-6</v></c></row>
</sheetData></worksheet>"""
TEXTS = f"""<sst {_NS}><si><t>id</t></si><si><r><t>na</t></r><r><t>me</t></r></si>
<si><t>a "big", mug</t></si></sst>"""
STYLES = f"""<styleSheet {_NS}><numFmts><numFmt numFmtId="170" formatCode="[$-409]d/m/yyyy"/>
<numFmt numFmtId="171" formatCode="0.00&quot;kg days&quot;"/></numFmts>
<cellXfs><xf numFmtId="0"/><xf numFmtId="22"/><xf numFmtId="170"/><xf numFmtId="171"/></cellXfs>
</styleSheet>"""
PARTS = {
    "[Content_Types].xml": f"""<Types xmlns="{_PACKAGE}/content-types">
<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>
<Override PartName="/xl/workbook.xml" ContentType="{_TYPE}.sheet.main+xml"/>
<Override PartName="/xl/worksheets/sheet1.xml" ContentType="{_TYPE}.worksheet+xml"/></Types>""",
    "_rels/.rels": f"""<Relationships xmlns="{_PACKAGE}/relationships"><Relationship Id="r1"
 Type="{_OFFICE}/officeDocument" Target="xl/workbook.xml"/></Relationships>""",
    "xl/workbook.xml": f"""<workbook {_NS} xmlns:r="{_OFFICE}"><sheets>
<sheet name="all" sheetId="1" r:id="r1"/></sheets></workbook>""",
    "xl/_rels/workbook.xml.rels": f"""<Relationships xmlns="{_PACKAGE}/relationships">
<Relationship Id="r1" Type="{_OFFICE}/worksheet" Target="worksheets/sheet1.xml"/>
<Relationship Id="r2" Type="{_OFFICE}/sharedStrings" Target="sharedStrings.xml"/>
<Relationship Id="r3" Type="{_OFFICE}/styles" Target="styles.xml"/></Relationships>""",
    "xl/worksheets/sheet1.xml": SHEET, "xl/sharedStrings.xml": TEXTS, "xl/styles.xml": STYLES}


def write_book(path: Path, **parts: str) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as book:
        for name, text in {**PARTS, **parts}.items():
            book.writestr(name, text)


def test_text_numbers_and_dates_are_read(tmp_path: Path) -> None:
    write_book(tmp_path / "a.xlsx")
    sheet_to_csv(tmp_path / "a.xlsx", tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_text() == (
        'id,name,when\n17850,"a ""big"", mug",2010-12-01 08:26:00\n'
        ',2.55,2010-12-02 00:00:00\n85123A,-6,\n')


def test_another_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.xlsx").write_text("no archive")
    with pytest.raises(InputError, match=r"a\.xlsx cannot be read as an Excel file"):
        sheet_to_csv(tmp_path / "a.xlsx", tmp_path / "a.csv")


def test_an_archive_that_is_no_book_is_one_line(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.xlsx", "w") as book:
        book.writestr("hello", "world")
    with pytest.raises(InputError, match=r"a\.xlsx cannot be read as an Excel file") as caught:
        sheet_to_csv(tmp_path / "a.xlsx", tmp_path / "a.csv")
    assert "\n" not in str(caught.value)


def test_a_book_that_swells_is_refused_before_it_is_read(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_book(tmp_path / "a.xlsx", **{"xl/sharedStrings.xml": TEXTS + " " * 100_000})
    monkeypatch.setattr(xlsx, "UNPACKED_LIMIT", 50_000)
    with pytest.raises(InputError, match="it unpacks to 10"):
        sheet_to_csv(tmp_path / "a.xlsx", tmp_path / "a.csv")
    assert not (tmp_path / "a.csv").exists()


def test_a_plain_install_is_told_what_is_missing_before_anything_is_brought(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for read in (lambda: sheet_to_csv(tmp_path / "a.xlsx", tmp_path / "a.csv"),
                 lambda: fetch("online-retail", tmp_path / "a")):
        with pytest.raises(InputError, match=r"expected `pip install 'rec-jax\[xlsx\]'`"):
            read()
    assert list(tmp_path.iterdir()) == []
