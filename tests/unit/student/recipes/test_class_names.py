import pytest

from teacherfarm.student.losses import NO_TARGET
from teacherfarm.student.recipes.class_names import match_classes, match_own
from teacherfarm.student.recipes.imagenet_synsets import WORDNET_IDS
from tests.unit.student.fake_teacher import make_card

CARD = make_card(4, classes=("tench, Tinca tinca", "great white shark", "crane", "crane"))


def test_names_match_however_they_are_written():
    match = match_classes(["Great_White-Shark", "tinca tinca", "tench"], CARD)
    assert match.numbers == (1, 0, 0)
    assert "3 of 3 classes" in str(match)


def test_an_ambiguous_or_unknown_name_is_not_guessed():
    match = match_classes(["crane", "tench", "sparrow"], CARD)
    assert match.numbers == (NO_TARGET, 0, NO_TARGET)
    assert match.unmatched == ("crane", "sparrow")
    assert str(match).endswith("not matched: crane, sparrow")


def test_wordnet_ids_follow_imagenets_order():
    assert len(set(WORDNET_IDS)) == 1000
    assert WORDNET_IDS[0] == "n01440764"
    assert list(WORDNET_IDS) == sorted(WORDNET_IDS)
    card = make_card(1000, classes=tuple(f"name {number}" for number in range(1000)))
    match = match_classes(["n01440764", "n01484850", "n15075141", "n99999999"], card)
    assert match.numbers == (0, 2, 999, NO_TARGET)
    assert "WordNet" in match.how


def test_wordnet_ids_of_another_set_are_taken_in_order_and_that_is_said():
    match = match_classes(["n00000001", "n00000005", "n00000006", "n00000007"], CARD)
    assert match.numbers == (0, 1, 2, 3)
    assert "assumed" in match.how
    assert match_classes(["n00000001"], CARD).numbers == (NO_TARGET,)


def test_numbers_are_numbers():
    match = match_classes(["0", "003", "4"], CARD)
    assert match.numbers == (0, 3, NO_TARGET)
    assert match.how == "by number"


def test_a_card_without_names_goes_by_order_only_when_the_counts_agree():
    card = make_card(3)
    assert match_classes(["a", "b", "c"], card).numbers == (0, 1, 2)
    assert "assumed" in match_classes(["a", "b", "c"], card).how
    assert match_classes(["a", "b"], card).numbers == (NO_TARGET, NO_TARGET)


def test_a_map_decides(tmp_path):
    file = tmp_path / "map.txt"
    file.write_text("fish = tench\n\nbird = 3\n")
    assert match_classes(["bird", "fish", "dog"], CARD, file).numbers == (3, 0, NO_TARGET)
    for line in ("fish = trout", "fish = 4", "fish"):
        file.write_text(f"bird = 3\n{line}\n")
        with pytest.raises(ValueError, match=r"map.txt, line 2: expected FOLDER = CLASS"):
            match_classes(["fish"], CARD, file)


def test_classes_of_ones_own_where_the_teacher_has_none():
    match = match_own(["bob", "eve", "ann"], ["ann", "bob", "cy"])
    assert match.numbers == (1, NO_TARGET, 0)
    assert str(match) == (
        "2 of 3 classes of the folder matched to the training images' by name, as the teacher has none; not matched: "
        "eve"
    )
