"""Chat templates of the kinds that are about, written for the tests, and a conversation to write with them."""

from __future__ import annotations

from predistill.corpus.chat import PLAIN

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is 2 + 3?"},
    {"role": "assistant", "content": "It is 5."},
    {"role": "user", "content": "春天？"},
    {"role": "assistant", "content": "春眠不觉晓。"},
]

CHATML = """\
{% for message in messages %}
{{ '<|im_start|>' + message['role'] + '\\n' }}
{%- generation %}{{ message['content'] }}{% endgeneration %}{{ '<|im_end|>\\n' }}
{% endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""
BRACKETS = """\
{{ bos_token }}
{%- for message in messages %}
{%- if message.role == 'user' %}{{ '[INST] ' + message.content + ' [/INST]' }}
{%- elif message.role == 'assistant' %}{{ ' ' + message.content + ' ' + eos_token }}
{%- else %}{{ '<<SYS>>' + message.content + '<</SYS>>\\n' }}{% endif %}
{%- endfor %}
"""
LINES = """\
{% for message in messages %}
{{ {'system': 'System', 'user': 'User', 'assistant': 'Bot'}[message.role] + ': ' + message.content | trim + '\\n' }}
{%- endfor %}
"""
THOUGHTS = """\
{% set ns = namespace(last=0) %}
{% for message in messages %}{% if message.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
{% for message in messages %}
{{ '<|im_start|>' + message.role + '\\n' }}
{%- if message.role == 'assistant' %}
{%- set said = message.content.split('</think>')[-1].lstrip('\\n') %}
{%- if loop.index0 > ns.last %}
{%- set thought = message.content.split('</think>')[0].split('<think>')[-1] if '</think>' in message.content else '' %}
{{- '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' }}
{%- endif %}
{{- said }}
{%- else %}{{ message.content }}{% endif %}
{{- '<|im_end|>\\n' }}
{%- endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""
TEMPLATES = {"plain": PLAIN, "chatml": CHATML, "brackets": BRACKETS, "lines": LINES, "thoughts": THOUGHTS}
