"""The first sheet of an Excel file, read from its XML."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from rec_jax.data import xlsx
from rec_jax.data.xlsx import sheet_to_csv
from rec_jax.errors import InputError

_NS = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
SHEET = f"""<worksheet {_NS}><sheetData>
<row r="1"><c r="A1" t="s"><v>0</v></c><c r="B1" t="s"><v>1</v></c><c r="C1" t="inlineStr"><is>
<t>when</t></is></c></row>
<row r="2"><c r="A2"><v>17850</v></c><c r="B2" t="s"><v>2</v></c>
<c r="C2" s="1"><v>40513.35138888889</v></c></row>
<row r="3"><c r="B3"><v>2.55</v></c><c r="C3" s="2"><v>40514</v></c></row>
</sheetData></worksheet>"""
TEXTS = f"""<sst {_NS}><si><t>id</t></si><si><r><t>na</t></r><r><t>me</t></r></si>
<si><t>a "big", mug</t></si></sst>"""
STYLES = f"""<styleSheet {_NS}><numFmts><numFmt numFmtId="170" formatCode="[$-409]d/m/yyyy"/>
<numFmt numFmtId="171" formatCode="0.00&quot;kg days&quot;"/></numFmts>
<cellXfs><xf numFmtId="0"/><xf numFmtId="22"/><xf numFmtId="170"/><xf numFmtId="171"/></cellXfs>
</styleSheet>"""


def test_text_numbers_and_dates_are_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.xlsx", "w") as book:
        book.writestr("xl/worksheets/sheet1.xml", SHEET)
        book.writestr("xl/sharedStrings.xml", TEXTS)
        book.writestr("xl/styles.xml", STYLES)
    sheet_to_csv(tmp_path / "a.xlsx", tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_text() == (
        'id,name,when\n17850,"a ""big"", mug",2010-12-01 08:26:00\n,2.55,2010-12-02 00:00:00\n')


def test_another_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.xlsx").write_text("no archive")
    with pytest.raises(InputError, match=r"a\.xlsx cannot be read as an Excel file"):
        sheet_to_csv(tmp_path / "a.xlsx", tmp_path / "a.csv")


@pytest.mark.parametrize(("limit", "message"), [
    ("TEXTS_LIMIT", "sharedStrings.xml has"), ("PART_LIMIT", "sheet1.xml has")])
def test_a_part_that_swells_is_refused_before_it_is_read(
        tmp_path: Path, limit: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "a.xlsx", "w", zipfile.ZIP_DEFLATED) as book:
        book.writestr("xl/worksheets/sheet1.xml", SHEET + " " * 100_000)
        book.writestr("xl/sharedStrings.xml", TEXTS + " " * 100_000)
    monkeypatch.setattr(xlsx, limit, 50_000)
    with pytest.raises(InputError, match=message):
        sheet_to_csv(tmp_path / "a.xlsx", tmp_path / "a.csv")


@pytest.mark.parametrize("cell", ['<c t="s"><v>99</v></c>', '<c t="s"><v>x</v></c>',
                                  '<c s="1"><v>1e300</v></c>', '<c s="1"><v>nan</v></c>'])
def test_a_cell_that_leads_nowhere_is_one_line(tmp_path: Path, cell: str) -> None:
    with zipfile.ZipFile(tmp_path / "a.xlsx", "w") as book:
        book.writestr("xl/worksheets/sheet1.xml",
                      f"<worksheet {_NS}><sheetData><row>{cell}</row></sheetData></worksheet>")
        book.writestr("xl/sharedStrings.xml", TEXTS)
        book.writestr("xl/styles.xml", STYLES)
    with pytest.raises(InputError, match="cannot be read as an Excel file"):
        sheet_to_csv(tmp_path / "a.xlsx", tmp_path / "a.csv")
