"""Languages are identified from a part of the text, and kept by list and score."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

pytest.importorskip("py3langid")

from openbook.data.clean.excerpt import excerpt
from openbook.data.clean.language import Language
from openbook.data.documents import Document
from openbook.data.steps import Removed
from openbook.errors import ConfigError
from tests.archive import archive

ENGLISH = "The children went down to the river to look for their boat, but it was gone."
GERMAN = "Die Kinder gingen zum Fluss hinunter, um ihr Boot zu suchen, aber es war fort."
# Files of the Universal Declaration of Human Rights → the label of the same language, where py3langid has one.
DECLARATIONS = """
afr:af als:sq amh:am arb:ar azj_latn:az azj_cyrl:az bel:be ben:bn bre:br bos_latn:bs bos_cyrl:bs bul:bg cat:ca
ces:cs cym:cy dan:da deu_1901:de dzo:dz ell_monotonic:el ell_polytonic:el eng:en epo:eo est:et eus:eu fao:fo
fin:fi fra:fr fri:fy gla:gd gle:ga glg:gl guj:gu hat_kreyol:ht hau_NG:ha heb:he hin:hi hrv:hr hun:hu hye:hy ibo:ig
ind:id isl:is ita:it jav:jv jpn:ja kan:kn kat:ka kaz:kk khk:mn khm:km kin:rw kir:ky kor:ko ckb:ku lao:lo lat:la
lav:lv lin:ln lit:lt ltz:lb lug:lg mal:ml mar:mr mkd:mk mlt:mt mly_latn:ms mya:my nep:ne nld:nl nno:nn nob:no
nso:nso lnc:oc pan:pa pbu:ps pes_1:fa plt:mg pol:pl por_PT:pt por_BR:pt quz:qu ron_1993:ro rus:ru san:sa slk:sk
slv:sl sme:se sna:sn som:so sot:st spa:es srp_cyrl:sr srp_latn:sr swe:sv swh:sw tam:ta tat:tt tgk:tg tgl:tl tha:th
tuk_latn:tk tur:tr uig_arab:ug ukr:uk urd:ur uzn_latn:uz vec:vec vie:vi wln:wa xho:xh yor:yo cmn_hans:zh
cmn_hant:zh zul:zu
"""


def document(text: str) -> Document:
    return Document(text, Path("a"), 1, 1, {"title": "t"})


def test_the_language_is_described() -> None:
    found = Language()(document(GERMAN))
    assert isinstance(found, Document)
    assert found.meta["language"] == "de"
    assert 0.5 < found.meta["language_score"] <= 1
    assert found.meta["title"] == "t"


def test_other_and_unclear_languages_go() -> None:
    step = Language(keep=("en",), threshold=0.5)
    assert isinstance(step(document(ENGLISH)), Document)
    other = step(document(GERMAN))
    assert isinstance(other, Removed)
    assert (other.reason, other.detail[:2]) == ("another language", "de")
    unclear = Language(keep=("en",), threshold=1.0)(document("no"))
    assert isinstance(unclear, Removed)


def test_an_unknown_language_is_named() -> None:
    with pytest.raises(ConfigError, match="No language 'eng'"):
        Language(keep=("eng",))(document(ENGLISH))


def test_a_long_text_is_read_in_parts() -> None:
    text = f"{ENGLISH * 3}{GERMAN * 2000}"
    assert Language().identify(text)[0] == "de"
    assert len(excerpt(text, 101)) == 101
    assert excerpt(text, 10) in (text[:5] + text[i : i + 5] for i in range(5, len(text)))
    assert excerpt("abc", 3) == "abc"
    assert excerpt("abcd", 3) == "abc"


@pytest.mark.slow
def test_declarations_of_human_rights_are_told_apart() -> None:
    """94.8% of 115 (1,024 characters of each): confused are only standards of one language, and rare scripts."""
    labels = dict(pair.split(":") for pair in DECLARATIONS.split())
    with zipfile.ZipFile(archive("tasks/multilingual/udhr2.zip")) as folder:
        texts = {name: folder.read(f"udhr2/{name}.txt").decode("utf-8") for name in labels}
    step = Language()
    wrong = {name for name, label in labels.items() if step.identify(texts[name])[0] != label}
    assert wrong <= {"azj_cyrl", "bos_latn", "bos_cyrl", "ell_polytonic", "srp_latn", "ind"}
