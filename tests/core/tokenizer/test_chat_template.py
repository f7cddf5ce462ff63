import enum

import pytest
from transformers import AutoTokenizer

from tgi_core.errors import ChatTemplateError

MESSAGES = [
    {"role": "system", "content": "Be <brief> & 'kind'."},
    {"role": "user", "content": "Grüße 🎉"},
    {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {"x": "<1>"}}}]},
    {"role": "user", "content": [{"type": "text", "text": "more"}]},
]
TOOLS = [{"type": "function", "function": {"name": "f", "description": "<&>", "parameters": {"type": "object"}}}]
TEMPLATES = {
    "plain": "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{{ 'A:' if add_generation_prompt }}",
    "trimmed blocks": "{% for m in messages %}\n    {% if m.content %}\n {{ m.role }}\n    {% endif %}\n{% endfor %}\n",
    "special tokens": "{{ bos_token }}{{ messages | length }}{{ eos_token }}{{ cls_token is defined }}",
    "tojson": "{{ tools | tojson }}{{ messages | tojson(indent=2) }}{{ {'b': 1, 'a': 'ü'} | tojson(sort_keys=true) }}",
    "loops": "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.role }}{% break %}{% endfor %}",
    "generation": "{% for m in messages %}{% generation %}{{ m.role }}{% endgeneration %}{% endfor %}",
    "generation and scopes": "{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}",
    "namespace": "{% set n = namespace(c=0) %}{% for m in messages %}{% set n.c = n.c + 1 %}{% endfor %}{{ n.c }}",
    "variables": "{{ enable_thinking }} {{ documents is none }} {{ missing is defined }}",
    "absent content": "{% for m in messages %}{{ 'content' in m }} {% endfor %}",
    "dates": "{{ strftime_now('%Y') }}",
    "reasoning": "{% for m in messages %}{{ m.reasoning_content }}{{ m.thinking }}{% endfor %}",
    "no tools": "{{ tools is none }}",
    "dict": "{{ dict(a=1) | tojson }}{{ dict.fromkeys(['x']) | tojson }}",
}


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("tools", [None, TOOLS])
def test_chats_are_rendered_as_transformers_does(load, tmp_path, name, tools):
    tokenizer = load({"chat_template": TEMPLATES[name]})
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for generation in (True, False):
        options = {"tools": tools, "add_generation_prompt": generation, "enable_thinking": False}
        expected = theirs.apply_chat_template(MESSAGES, tokenize=False, **options)
        assert tokenizer.render_chat(MESSAGES, **options) == expected


def test_reasoning_is_found_under_each_of_its_names(load, tmp_path):
    tokenizer = load({"chat_template": TEMPLATES["reasoning"]})
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for name in ("reasoning_content", "thinking", "reasoning"):
        messages = [{"role": "assistant", "content": "x", name: "because"}]
        assert tokenizer.render_chat(messages) == theirs.apply_chat_template(messages, tokenize=False)


def test_a_template_file_beats_the_configuration(load):
    assert load({"chat_template": "a"}, files={"chat_template.jinja": "b"}).chat_template == "b"


def test_an_old_template_file_is_read(load):
    assert load({"chat_template": None}, files={"chat_template.json": {"chat_template": "c"}}).chat_template == "c"


@pytest.mark.parametrize(
    ("config", "files"),
    [
        ({"chat_template": [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]}, {}),
        ({"chat_template": {"default": "d", "tool_use": "t"}}, {}),
        ({}, {"chat_template.jinja": "d", "additional_chat_templates/tool_use.jinja": "t"}),
    ],
)
def test_named_templates(load, config, files):
    tokenizer = load(config, files=files)
    assert tokenizer.render_chat(MESSAGES) == "d"
    assert tokenizer.render_chat(MESSAGES, tools=TOOLS) == "t"
    assert tokenizer.render_chat(MESSAGES, template_name="tool_use") == "t"
    with pytest.raises(ChatTemplateError, match="no chat template 'x'; it has"):
        tokenizer.render_chat(MESSAGES, template_name="x")


def test_a_model_without_a_template_says_what_to_do(load):
    tokenizer = load({"chat_template": None})
    assert tokenizer.chat_template is None
    with pytest.raises(ChatTemplateError, match="this model has no chat template; use a completion endpoint"):
        tokenizer.render_chat(MESSAGES)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ messages[99].role }}", "has no element 99"),
        ("{{ messages[0].content.missing() }}", "has no attribute 'missing'"),
        ("{% for x in %}", "'default' is malformed"),
        ("{% for i in range(999999999) %}x{% endfor %}", "Range too big"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe|not safely callable"),
        ("{% set n = namespace() %}{% set n.__class__ = 1 %}", "cannot store the attribute"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recurs"),
        ("{% for i in range(90000) %}{% for j in range(90000) %}{{ 'x' * 999 }}{% endfor %}{% endfor %}", "wrote more"),
    ],
)
def test_a_bad_template_harms_only_its_request(load, template, reason):
    with pytest.raises(ChatTemplateError, match=reason):
        load({"chat_template": template}).render_chat(MESSAGES)


def test_an_empty_chat_is_refused(load):
    with pytest.raises(ChatTemplateError, match="at least one message"):
        load().render_chat([])


def test_templates_see_plain_data_only(load):
    class Role(str, enum.Enum):  # noqa: UP042 (a string that is not quite one)
        USER = "user"

    tokenizer = load({"chat_template": "{{ messages[0].role }} {{ messages[0].content }} {{ messages[0].n }}"})
    message = {"role": Role.USER, "content": object(), "n": (1, 2)}
    assert tokenizer.render_chat([message]) == "user <object> [1, 2]"


def test_messages_are_left_as_they_were(load):
    messages = [{"role": "assistant", "content": None, "reasoning": "x"}]
    load().render_chat([{"role": "user", "content": "a"}])
    load({"chat_template": "{{ messages[0].thinking }}"}).render_chat(messages)
    assert messages == [{"role": "assistant", "content": None, "reasoning": "x"}]
