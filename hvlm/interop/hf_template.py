"""A tokenizer for transformers whose chat template writes what the model was trained on."""

from __future__ import annotations

import json

from tokenizers import normalizers
from transformers import PreTrainedTokenizerFast

from hvlm.chat import Chat

# A character without a meaning keeps a special token that is spelt out in somebody's text from being one: the template
# puts it in, the tokenizer's normalizer takes it out after special tokens were looked for.
GUARD = "\ue000"
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


def tokenizer_with_template(chat: Chat) -> PreTrainedTokenizerFast:
    """``chat``'s tokenizer as transformers knows it, with its template.

    ``apply_chat_template`` gives the ids of ``chat.encode_prompt`` and ``chat.encode``: the system turn that the model
    was trained with stands where a conversation has none of its own, and a special token in a turn's content is text.
    """
    tokenizer = chat.to_fast()
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
