from __future__ import annotations

import io
import tarfile
from itertools import combinations
from pathlib import Path

import pytest
from sculpt.demo.brown import BROWN, SHARES, detokenize, parse, read_files, split_files, tagging_task
from sculpt.demo.fetch import cached_file
from sculpt.demo.tiny import cipher_task, documents, split_documents
from sculpt.fusion.cache import default_cache
from sculpt.fusion.errors import DataError

NAMES = [f"c{genre}{number:02}" for genre in "abcdefghjklmnpr" for number in range(1, 34)]


def cached_brown() -> Path:
    file = cached_file(BROWN, default_cache())
    if not file.is_file():
        pytest.skip("the Brown corpus is not in the cache; `sculpt demo` fetches it")
    return file


def test_no_file_of_the_corpus_serves_two_parts() -> None:
    split = split_files(NAMES)
    for one, other in combinations(SHARES, 2):
        assert not set(split[one]) & set(split[other])
    assert sorted(name for part in split.values() for name in part) == sorted(NAMES)


def test_every_part_holds_its_share_of_every_genre() -> None:
    split = split_files(NAMES)
    for part, share in SHARES.items():
        for genre in {name[:2] for name in NAMES}:
            assert abs(sum(name[:2] == genre for name in split[part]) - share * 33) <= 1


def test_the_split_does_not_depend_on_the_order_of_names() -> None:
    assert split_files(NAMES) == split_files(reversed(NAMES))


def test_tags_lose_the_marks_of_titles_and_foreign_words() -> None:
    (sentence,) = parse("\n\n\tThe/at Fulton/np-tl ad/fw-in it's/pps+bez wouldn't/md* 1/2/cd ./.\n")
    words, tags = zip(*sentence, strict=True)
    assert words == ("The", "Fulton", "ad", "it's", "wouldn't", "1/2", ".")
    assert tags == ("at", "np", "in", "pps+bez", "md*", "cd", ".")


def test_prose_reads_as_printed() -> None:
    sentences = parse("``/`` Yes/rb ''/'' ,/, he/pps said/vbd (/( twice/rb )/) ./.\nShe/pps left/vbd ./.")
    assert detokenize(sentences) == '"Yes", he said (twice). She left.'


def test_an_archive_without_the_corpus_is_refused(tmp_path) -> None:
    file = tmp_path / "other.tgz"
    with tarfile.open(file, "w:gz") as archive:
        member = tarfile.TarInfo("package/readme")
        member.size = 2
        archive.addfile(member, io.BytesIO(b"hi"))
    with pytest.raises(DataError, match="holds no file of the Brown corpus"):
        read_files(file)


def test_what_is_no_archive_is_refused(tmp_path) -> None:
    file = tmp_path / "broken.tgz"
    file.write_bytes(b"not an archive")
    with pytest.raises(DataError, match="cannot read"):
        read_files(file)


def test_the_real_corpus_gives_a_whole_task() -> None:
    file = cached_brown()
    assert len(read_files(file)) == 500
    task = tagging_task(file)
    assert (len(task.train), len(task.validation), len(task.test), len(task.prose)) == (2400, 150, 150, 40)
    assert not {example.prompt for example in task.train} & {example.prompt for example in task.test}


def test_the_shipped_text_has_enough_documents_to_calibrate_on() -> None:
    lengths = [len(document.split()) for document in documents()]
    assert len(lengths) >= 128
    assert min(lengths) >= 300
    assert max(lengths) <= 800


def test_no_shipped_document_serves_two_parts() -> None:
    split = split_documents()
    assert sorted(document for part in split.values() for document in part) == sorted(documents())
    assert len(set(documents())) == len(documents())


def test_the_cipher_is_english_moved_by_13_letters() -> None:
    back = str.maketrans("nopqrstuvwxyzabcdefghijklm", "abcdefghijklmnopqrstuvwxyz")
    text = " ".join(example.text for example in cipher_task().test)
    assert text.translate(back).count(" the ") > 50 > text.count(" the ")
