"""A prompt in another language than the base reads is noted once; English ones never are."""

import pytest

from objtune_cli.workflow.prompt_language import find_language

OTHER = [
    "ein Foto von meinem Hund am Strand bei Sonnenuntergang",
    "eine Tasse auf einem Holztisch, weiches Licht",
    "une photo de mon chien sur la plage au coucher du soleil",
    "mon chat dans la neige",
    "una foto de mi perro en la playa al atardecer",
    "una taza sobre una mesa de madera",
    "una foto del mio cane sulla spiaggia al tramonto",
    "uma foto do meu cachorro na praia",
    "een foto van mijn hond op het strand bij zonsondergang",
    "zdjęcie mojego psa na plaży na tle zachodu",
]
ENGLISH = [
    "a photo of <dog> on the beach at sunset",
    "portrait of a corgi wearing a wizard hat, intricate, highly detailed, artstation",
    "cinematic still, teddy bear riding a bicycle through Amsterdam, bokeh",
    "masterpiece, best quality, 1girl, solo, (blue eyes:1.2)",
    "a café in Paris, art deco",
    "art nouveau poster, la belle époque",
    "un chien andalou",
    "a van on a road, mi amigo taqueria",
    "<mein-hund> <und>",
    "dog",
    "🐕 on a 🛹",
    "",
]
SCRIPTS = {
    "фото моей собаки на пляже": "Cyrillic script",
    "我的狗在海滩上的照片": "Chinese script",
    "ビーチにいる私の犬の写真": "script",
    "<dog> 在海滩上": "Chinese script",
    "صورة كلبي على الشاطئ": "Arabic script",
    "מיין הונט": "Hebrew script",
}


@pytest.mark.parametrize("prompt", OTHER)
def test_prompts_in_other_languages_are_recognised(prompt: str) -> None:
    assert find_language(prompt) == "another language than English"


@pytest.mark.parametrize("prompt", ENGLISH)
def test_english_and_unclear_prompts_are_left_alone(prompt: str) -> None:
    assert find_language(prompt) == ""


@pytest.mark.parametrize("prompt", SCRIPTS)
def test_prompts_in_other_scripts_are_named(prompt: str) -> None:
    assert find_language(prompt).endswith(SCRIPTS[prompt])
