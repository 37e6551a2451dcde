"""Names of the tensors of a compressed model, in the place of transformers' renamings."""

from transformers.core_model_loading import WeightRenaming

from rankfold_transformers.renaming import ChainNames, chain_names

OTHERS = [WeightRenaming(r"^old\.", "middle."), WeightRenaming("middle", "new")]


def test_known_names_stay_or_are_looked_up_and_others_are_renamed_in_order() -> None:
    names = ChainNames({"old.fc.0.weight": "new.fc.first"}, {"old.kept"}, OTHERS)
    assert names.rename_source_key("old.fc.0.weight") == ("new.fc.first", None)
    assert names.rename_source_key("old.kept") == ("old.kept", None)
    assert names.rename_source_key("old.fc.bias") == ("new.fc.bias", None)


def test_it_stands_in_the_place_of_all_renamings() -> None:
    converter = object()
    first, *converters = chain_names([OTHERS[0], converter, OTHERS[1]], {"a": "b"}, ())
    assert converters == [converter]
    assert first.rename_source_key("old.x") == ("new.x", None)
    assert first.rename_source_key("a") == ("b", None)
    # files with the names of the model are not converted
    (alone,) = chain_names([*OTHERS, converter], {}, {"old.x"})
    assert alone.rename_source_key("old.x") == ("old.x", None)
