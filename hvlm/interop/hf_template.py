"""A tokenizer for transformers whose chat template writes what the model was trained on."""

from __future__ import annotations

import json
import re

from tokenizers import normalizers
from transformers import PreTrainedTokenizerFast

from hvlm.text.chat import Chat
from hvlm.text.jinja import GUARD, ChatTemplate

TEMPLATES = {  # as Chat writes a conversation, in the language of chat templates
    "chatml": (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] GUARDED }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "tiny": (
        "{% for m in messages %}{% if m['role'] == 'user' %}<|user|> {{ m['content'] GUARDED }}{% else %}<|assistant|> "
        "{{ m['content'] GUARDED }}<|end|>{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    ),
}


# Before a template of the tokenizer's own: its messages with the system message that they lack, and texts in which no
# special token is one. (See ``hvlm.text.jinja`` for the character that is put between.)
BEFORE = """\
{%- if enable_thinking is not defined %}{%- set enable_thinking = false %}{% endif -%}
{%- set hvlm = namespace(said=messages, system=SYSTEM, done=[], text='') -%}
{%- if hvlm.said[0]['role'] == 'system' and not TAKES_SYSTEM -%}
{%- set hvlm.system = hvlm.said[0]['content'] -%}{%- set hvlm.said = hvlm.said[1:] -%}
{%- endif -%}
{%- if hvlm.system is not none and hvlm.said[0]['role'] != 'system' -%}
{%- if TAKES_SYSTEM -%}
{%- set hvlm.said = [{'role': 'system', 'content': hvlm.system}] + hvlm.said -%}
{%- elif hvlm.system -%}
{%- set hvlm.text = hvlm.system + '\n\n' + hvlm.said[0]['content'] -%}
{%- set hvlm.said = [dict(hvlm.said[0], content=hvlm.text)] + hvlm.said[1:] -%}
{%- endif -%}
{%- endif -%}
{%- for m in hvlm.said -%}
{%- set hvlm.text = m['content'] -%}
{%- if hvlm.text is string -%}
{%- set hvlm.text = hvlm.text | replace('GUARD', '') -%}
{%- for token in (ANSWERS if m['role'] == 'assistant' else OTHERS) -%}
{%- set hvlm.text = hvlm.text | replace(token, token[0] + 'GUARD' + token[1:]) -%}
{%- endfor -%}
{%- endif -%}
{%- set hvlm.done = hvlm.done + [dict(m, content=hvlm.text)] -%}
{%- endfor -%}
{%- set messages = hvlm.done -%}
"""


def _guarded(template: ChatTemplate, system: str | None) -> str:
    """The template with ``BEFORE``."""
    values = {
        "TAKES_SYSTEM": "true" if template.takes_system else "false",
        "SYSTEM": "none" if system is None else json.dumps(system, ensure_ascii=False),
        "OTHERS": json.dumps(template.of_others.tokens, ensure_ascii=False),
        "ANSWERS": json.dumps(template.of_answers.tokens, ensure_ascii=False),
        "GUARD": GUARD,
    }
    before = re.sub("|".join(values), lambda found: values[found.group()], BEFORE)
    return before + template.frozen


def tokenizer_with_template(chat: Chat) -> PreTrainedTokenizerFast:
    """``chat``'s tokenizer as transformers knows it, with its template.

    ``apply_chat_template`` gives the ids of ``chat.encode_prompt`` and ``chat.encode``: the system turn that the model
    was trained with stands where a conversation has none of its own, and a special token in a turn's content is text.
    """
    tokenizer = chat.to_fast()
    if chat.jinja is not None:
        tokenizer.chat_template = _guarded(chat.jinja, chat.system)
        return tokenizer
    backend = tokenizer.backend_tokenizer
    before = [] if backend.normalizer is None else [backend.normalizer]
    backend.normalizer = normalizers.Sequence([normalizers.Replace(GUARD, ""), *before])
    special = [token.content for token in tokenizer.added_tokens_decoder.values()]
    guarded = "".join(f" | replace({json.dumps(t)}, {json.dumps(t[0] + GUARD + t[1:])})" for t in special)
    template = TEMPLATES[chat.template].replace(" GUARDED", guarded)
    if chat.system is not None:
        content = json.dumps(chat.system, ensure_ascii=False) + guarded
        turn = f"<|im_start|>system\n{{{{ {content} }}}}<|im_end|>\n"
        template = f"{{% if messages[0]['role'] != 'system' %}}{turn}{{% endif %}}{template}"
    tokenizer.chat_template = template
    return tokenizer
