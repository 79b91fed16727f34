"""The same verses in both languages, before and after: losses in colours, and what the model makes of a prompt."""

import html
from collections.abc import Sequence
from string import Template
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import GPT2LMHeadModel

from common.gpt2 import token_losses
from common.token_colors import WORST, in_html, in_terminal
from common.verses import Verse
from language.config import LANGUAGES
from language.measure import continued

VERSES, PROMPT = 4, 8  #: How many are shown, and how many tokens of each are a prompt.

Sample = dict[str, Any]
Models = dict[str, GPT2LMHeadModel]


def samples(models: Models, tokenizer: Tokenizer, verses: Sequence[Verse], context: int, seed: int) -> list[Sample]:
    """For each shown verse and language, what each of the models has to say: losses of tokens, and a completion.

    Args:
        models: By what they are called, such as "before".
        tokenizer: Of the models.
        verses: None that they were trained on. The shown ones are spread over them.
        context: Tokens that the models can read.
        seed: Of the completions.
    """
    long = [verse for verse in verses if all(len(text.split()) > PROMPT for text in verse.texts.values())] or list(
        verses
    )
    shown = long[:: max(1, len(long) // VERSES)][:VERSES]
    return [
        {
            "chapter": verse.chapter,
            "language": language,
            **{name: _sample(model, tokenizer, verse.texts[language], context, seed) for name, model in models.items()},
        }
        for verse in shown
        for language in LANGUAGES
    ]


def terminal(found: Sequence[Sample], names: Sequence[str], *, color: bool) -> str:
    """The samples as text, with ANSI colours if asked for."""
    lines = []
    for sample in found:
        lines.append(f"\n{sample['chapter']}, {sample['language']}")
        for name in names:
            pieces = sample[name]["pieces"]
            lines.append(f"  {name:>7}: {in_terminal(pieces) if color else ''.join(text for text, _ in pieces)}")
            lines.append(f"           {sample[name]['prompt']} …{sample[name]['completion']}")
    return "\n".join(lines)


def page(found: Sequence[Sample], names: Sequence[str], sentence: str) -> str:
    """The samples as one HTML page that asks nobody for anything."""
    rows = []
    for sample in found:
        rows.append(f"<h2>{html.escape(sample['chapter'])}, {html.escape(sample['language'])}</h2>")
        for name in names:
            own = sample[name]
            made = f"<b>{html.escape(own['prompt'])}</b>{html.escape(own['completion'])}"
            rows.append(f"<h3>{html.escape(name)}</h3><p>{in_html(own['pieces'])}</p><p>{made}</p>")
    return _PAGE.substitute(sentence=html.escape(sentence), rows="\n".join(rows), worst=WORST)


_PAGE = Template("""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>A language, taken out</title>
<style>
body { font: 16px/1.6 system-ui, sans-serif; color: #22303c; max-width: 46rem; margin: 2rem auto; padding: 0 1rem }
h2 { font-size: 1.1rem; margin: 2rem 0 0 }
h3 { font-size: .85rem; color: #5c6a76; margin: .6rem 0 0 }
p { margin: .2rem 0 }
span { color: #111; border-radius: 2px }
</style>
<h1>A language, taken out</h1>
<p>$sentence</p>
<p>Held-out verses. Each token has the colour of its loss: white is none, red is $worst nats and more. Below, the
verse's first words in bold, and what the model goes on with.</p>
$rows
</html>
""")


def _sample(model: GPT2LMHeadModel, tokenizer: Tokenizer, text: str, context: int, seed: int) -> Sample:
    model.eval()  # type: ignore[no-untyped-call]
    encoded = tokenizer.encode(text)
    ids, spans = encoded.ids[: context - 1], encoded.offsets[: context - 1]
    # After a token that says where a text begins, so that its first token has a loss, too.
    losses = token_losses(model, torch.tensor([[0, *ids]]))[0].tolist()
    prompt = tokenizer.encode(text).ids[:PROMPT]
    made = continued(model, [0, *prompt], context // 2, seed)[1:]
    return {
        "pieces": [(text[start:end], loss) for (start, end), loss in zip(spans, losses, strict=True)],
        "prompt": tokenizer.decode(prompt),
        "completion": tokenizer.decode(made[len(prompt) :], skip_special_tokens=False),
    }
