"""Conversations: read in every public form, rendered by the tokenizer's own template, every token with its role."""

import json
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chat_templates import CHATML, GEMMA, LLAMA3, MISTRAL, SHOUTING, TEMPLATES, THINKING
from sae.data.chat import ChatTemplate, Unusable, read_messages
from sae.data.documents import DataError, open_documents
from sae.data.packing import Cursor, pack
from sae.selftest.world import byte_tokenizer

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "user"},
    {"role": "assistant", "content": "  What about the user, é 😀?\n"},
    {"role": "user", "content": "assistant"},
    {"role": "assistant", "content": "Be brief."},
]


def chatting(template, **options):
    tokenizer = byte_tokenizer(300, **options)
    tokenizer.chat_template = template
    return tokenizer


def turns(rendered):
    """[(role, text), ...] of the spans."""
    begins = [0, *(span.end for span in rendered.spans)]
    return [(s.role, rendered.text[begin : s.end]) for begin, s in zip(begins, rendered.spans, strict=False)]


def of_role(rendered, role):
    return "".join(text for name, text in turns(rendered) if name == role)


def saved(tmp_path, rows, name="chat.jsonl"):
    path = tmp_path / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_each_role_says_is_of_that_role_and_no_other(name):
    messages = TALK[1:] if name == "gemma" else TALK
    tokenizer = chatting(TEMPLATES[name])
    rendered = ChatTemplate(tokenizer).render(messages)
    theirs = tokenizer.apply_chat_template(messages, tokenize=False)
    assert rendered.text == re.sub(r"(?<=Date: ).*", "26 Jul 2024", theirs)
    assert rendered.spans[-1].end == len(rendered.text)
    for role in {m["role"] for m in messages}:
        said = [m["content"].strip() for m in messages if m["role"] == role]
        assert re.search(".*".join(map(re.escape, said)), of_role(rendered, role), re.DOTALL)
    users = of_role(rendered, "user")
    assert "Be brief" not in users
    assert "What about" not in users


def test_headers_and_ends_of_turns_are_of_their_turn():
    rendered = ChatTemplate(chatting(CHATML)).render(TALK[1:3])
    assert turns(rendered) == [
        ("", "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"),
        ("user", "<|im_start|>user\nuser<|im_end|>\n"),
        ("assistant", "<|im_start|>assistant\n  What about the user, é 😀?\n<|im_end|>\n"),
    ]


def test_a_system_text_inside_a_users_turn_keeps_its_role():
    rendered = ChatTemplate(chatting(MISTRAL)).render(TALK[:4])
    assert ("system", "Be brief.") in turns(rendered)
    assert "assistant" in of_role(rendered, "user")
    assert "[INST]" not in of_role(rendered, "user")


def test_thinking_that_a_template_leaves_out_moves_no_role():
    talk = [
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "<think>\nadd\n</think>\n\n2"},
        {"role": "user", "content": "2+2?"},
        {"role": "assistant", "content": "<think>\nadd again\n</think>\n\n4"},
    ]
    rendered = ChatTemplate(chatting(THINKING)).render(talk)
    said = of_role(rendered, "assistant")
    assert "add again" in said
    assert said.count("add") == 1
    assert "?" not in said
    assert of_role(rendered, "user").count("?") == 2


def test_tool_calls_without_content_are_the_assistants():
    talk = read_messages(
        [
            {"role": "user", "content": "Weather?"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"function": {"name": "look", "arguments": {"at": 1}}}],
            },
            {"role": "tool", "content": "rain", "tool_calls": None},
        ]
    )
    rendered = ChatTemplate(chatting(THINKING)).render(talk)
    assert '"look"' in of_role(rendered, "assistant")
    assert "rain" in of_role(rendered, "tool")
    assert "look" not in of_role(rendered, "tool")


def test_a_reply_ends_with_the_assistants_header():
    rendered = ChatTemplate(chatting(CHATML)).render(TALK[:2], reply=True)
    assert turns(rendered)[-1] == ("assistant", "<|im_start|>assistant\n")
    assert of_role(rendered, "user") == "<|im_start|>user\nuser<|im_end|>\n"


def test_the_date_in_a_template_is_the_same_every_day():
    assert "Today Date: 26 Jul 2024" in ChatTemplate(chatting(LLAMA3)).render(TALK).text


def test_roles_that_cannot_be_told_are_not_guessed():
    assert ChatTemplate(chatting(SHOUTING)).render(TALK).spans == ()


@settings(max_examples=40, deadline=None)
@given(
    said=st.lists(
        st.text(st.characters(codec="utf-8", exclude_categories=["Co"]), max_size=25), min_size=1, max_size=6
    ),
    template=st.sampled_from([CHATML, LLAMA3, GEMMA, THINKING]),
    context=st.integers(3, 40),
)
def test_every_token_has_the_role_of_its_turn_however_contexts_are_cut(said, template, context):
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]
    tokenizer = chatting(template)
    rendered = ChatTemplate(tokenizer).render(messages)
    if not rendered.spans:  # only where a message holds the template's own words
        assert any("think" in text for text in said)
        return
    documents = [Ready(rendered)]
    got = {}
    for contexts in pack(Listed(documents), tokenizer, context=context, batch=2):
        real = contexts.document >= 0
        for token, number in zip(contexts.tokens[real].tolist(), contexts.role[real].tolist(), strict=True):
            got.setdefault(contexts.roles[number] if number >= 0 else "", []).append(token)
    for role in ("user", "assistant"):
        # turns begin and end with text of the template that no token straddles, so each is tokenized alone alike
        expected = [
            token
            for name, text in turns(rendered)
            if name == role
            for token in tokenizer(text, add_special_tokens=False)["input_ids"]
        ]
        assert tokenizer.decode(got.get(role, [])) == tokenizer.decode(expected)


def Ready(rendered):  # noqa: N802
    from sae.data.documents import Document

    return Document(0, rendered.text, None, rendered.spans)


class Listed:
    def __init__(self, documents):
        self.documents = documents

    def iterate(self, start=0):
        return (document for document in self.documents if document.index >= start)


def test_roles_go_on_from_any_cursor(tmp_path):
    path = saved(tmp_path, [{"messages": TALK}, {"messages": TALK[1:3]}, {"messages": TALK}])
    tokenizer = chatting(CHATML)
    documents = open_documents(path, split="all").with_tokenizer(tokenizer, ids_below=300)
    batches = list(pack(documents, tokenizer, context=20, batch=2))
    assert len(batches) > 3
    for index, contexts in enumerate(batches[:-1]):
        again = next(pack(documents, tokenizer, context=20, batch=2, start=contexts.next))
        assert torch.equal(again.tokens, batches[index + 1].tokens)
        assert torch.equal(again.of_roles(["user"]), batches[index + 1].of_roles(["user"]))
    first = next(pack(documents, tokenizer, context=400, batch=1, start=Cursor(1)))
    assert first.of_roles(["assistant", "user"]).any()
    assert not first.of_roles([]).any()


def test_a_conversation_of_many_pieces_keeps_its_roles(tmp_path, monkeypatch):
    from sae.data import tokens

    monkeypatch.setattr(tokens, "PIECE", 60)
    talk = [{"role": ("user", "assistant")[i % 2], "content": f"{'ab'[i % 2]} " * 100} for i in range(4)]
    path, tokenizer = (
        saved(tmp_path, [{"messages": talk}]),
        chatting("{% for m in messages %}{{ m.content }}{% endfor %}"),
    )
    documents = open_documents(path, split="all").with_tokenizer(tokenizer, ids_below=300)
    for contexts in pack(documents, tokenizer, context=16, batch=4):
        text = {role: tokenizer.decode(contexts.tokens[contexts.of_roles([role])]) for role in ("user", "assistant")}
        assert "b" not in text["user"]
        assert "a" not in text["assistant"]


def test_a_template_that_writes_bos_gives_one(tmp_path):
    path, tokenizer = saved(tmp_path, [{"messages": TALK}]), chatting(LLAMA3)
    documents = open_documents(path, split="all").with_tokenizer(tokenizer, ids_below=300)
    contexts = next(pack(documents, tokenizer, context=400, batch=1))
    assert contexts.tokens[0].tolist().count(tokenizer.bos_token_id) == 1
    assert contexts.tokens[0, 0] == tokenizer.bos_token_id
    assert contexts.position[0, :3].tolist() == [0, 1, 2]


FORMS = {
    "openai": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}],
    "sharegpt": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}],
    "parts": [
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]},
    ],
    "columns": {"role": ["user", "assistant"], "content": ["Hi", "Hello"]},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet", "folder", "saved"])
def test_every_public_form_of_a_chat_is_the_same_conversation(form, kind, tmp_path):
    rows = [{"source": "src3", "messages": FORMS[form]}] * 3
    if kind == "folder":
        saved(tmp_path, rows)
        path = tmp_path
    elif kind == "json":
        path = tmp_path / "x.json"
        path.write_text(json.dumps(rows))
    elif kind == "jsonl":
        path = saved(tmp_path, rows)
    else:
        from datasets import Dataset

        path = tmp_path / f"x.{kind}"
        table = Dataset.from_list(rows)
        table.to_parquet(path) if kind == "parquet" else table.save_to_disk(path)
    documents = open_documents(path, split="all", roles=["assistant", "user"])
    assert documents.provenance["text_field"] == "messages"
    assert documents.provenance["kind"] == "chat"
    assert [d.text for d in documents] == ["user: Hi\nassistant: Hello"] * 3


BAD = {
    "no messages": [],
    "empty": [{"role": "user", "content": " "}, {"role": "assistant", "content": None}],
    "null": None,
    "a message without a role": [{"content": "Hi"}],
    "no conversation (str)": "user: Hi",
    "a message whose content is not text (image_url)": [{"role": "user", "content": [{"type": "image_url"}]}],
    "a message whose content is not text (int)": [{"role": "user", "content": 7}],
    "not Unicode": [{"role": "user", "content": "\ud800"}],
}


def test_rows_that_are_no_conversation_are_left_out_and_counted(tmp_path):
    good = [{"role": "user", "content": "Hi"}]
    path = saved(tmp_path, [{"messages": value} for value in (good, *BAD.values(), good)])
    documents = open_documents(path, split="all")
    assert [d.index for d in documents] == [0, len(BAD) + 1]
    assert documents.skipped == dict.fromkeys(BAD, 1)
    for reason, value in BAD.items():
        if reason != "not Unicode":
            with pytest.raises(Unusable, match=re.escape(reason)):
                read_messages(value)


def test_a_conversation_that_the_template_refuses_is_left_out_with_the_reason(tmp_path):
    path = saved(tmp_path, [{"messages": TALK[1:3]}, {"messages": TALK}, {"messages": [TALK[1]]}])
    documents = open_documents(path, split="all").with_tokenizer(chatting(GEMMA), ids_below=300)
    assert [d.index for d in documents] == [0, 2]
    assert documents.skipped == {"refused by the chat template: System role not supported": 1}
    only = open_documents(saved(tmp_path, [{"messages": TALK}], "only.jsonl"), split="all")
    with pytest.raises(DataError, match=r"none of 1 rows.*1 refused by the chat template: System role not supported"):
        only.with_tokenizer(chatting(GEMMA), ids_below=300)


def test_wanted_roles_that_cannot_be_told_are_refused_with_the_reason(tmp_path):
    documents = open_documents(saved(tmp_path, [{"messages": TALK}]), split="all")
    assert next(iter(documents.with_tokenizer(chatting(SHOUTING), ids_below=300))).spans == ()
    with pytest.raises(DataError, match="roles that cannot be told from the chat template's text"):
        documents.with_tokenizer(chatting(SHOUTING), ids_below=300, roles=["user"])


def test_a_tokenizer_without_a_template_is_refused_with_the_remedy(tmp_path):
    documents = open_documents(saved(tmp_path, [{"messages": TALK}]), split="all")
    with pytest.raises(DataError, match=r"column 'messages'.*no chat template.*--text-field.*chat_template\.jinja"):
        documents.with_tokenizer(byte_tokenizer(300), ids_below=300)


def test_roles_are_those_of_the_data(tmp_path):
    path = saved(tmp_path, [{"messages": TALK, "text": "words"}])
    with pytest.raises(DataError, match=r"user, bot: bot does not occur.*user \(2 messages\), assis"):
        open_documents(path, text_field="messages", roles=["user", "bot"])
    with pytest.raises(DataError, match=r"--roles user: column 'text' of .* holds text, where no token has a role"):
        open_documents(path, roles=["user"])


def test_the_split_follows_the_whole_conversation(tmp_path):
    talks = [[*TALK, {"role": "user", "content": f"{n}"}] for n in range(60)]
    path = saved(tmp_path, [{"messages": talk} for talk in talks * 2])
    sides = [{d.text for d in open_documents(path, split=side, heldout=0.4)} for side in ("train", "heldout")]
    assert not sides[0] & sides[1]
    assert len(sides[0] | sides[1]) == 60
    assert min(map(len, sides)) > 10
    # the same words with other roles are another conversation
    swapped = [{**m, "role": "user" if m["role"] == "assistant" else "assistant"} for m in TALK]
    from sae.data.chat import canonical

    assert canonical(read_messages(swapped)) != canonical(read_messages(TALK))


WITH_TOOLS = (
    "{% if tools %}<tools>{% for tool in tools %}{{ tool | tojson }}{% endfor %}</tools>{% endif %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
)
SEARCH = {"type": "function", "function": {"name": "search", "parameters": {"type": "object", "properties": {}}}}


@pytest.mark.parametrize("written", [lambda tools: tools, json.dumps], ids=["a list", "JSON text"])
def test_the_tools_of_a_row_reach_the_template_and_belong_to_nobody(written, tmp_path):
    rows = [
        {"messages": TALK[1:3], "tools": written([{**SEARCH, "strict": None}])},
        {"messages": TALK[1:3], "tools": None},
    ]
    tokenizer = chatting(WITH_TOOLS)
    documents = open_documents(saved(tmp_path, rows), split="all")
    assert documents.provenance["tools_field"] == "tools"
    some, none = documents.with_tokenizer(tokenizer, ids_below=300)
    assert some.text == tokenizer.apply_chat_template(TALK[1:3], tools=[SEARCH], tokenize=False)
    assert '"search"' in some.text
    assert some.text.endswith(none.text)
    assert turns(some)[0] == ("", some.text[: -len(none.text)])
    assert [role for role, _ in turns(some)[1:]] == [role for role, _ in turns(none)] == ["user", "assistant"]


def test_tools_that_cannot_be_read_are_told(tmp_path):
    rows = [{"messages": TALK[1:3], "tools": tools} for tools in ("[]", "[3]", "{", "")]
    documents = open_documents(saved(tmp_path, rows), split="all").with_tokenizer(chatting(WITH_TOOLS), ids_below=300)
    assert [document.index for document in documents] == [0, 3]
    assert documents.skipped == {"tools that are not a list of JSON schemas": 1, "tools that are not JSON": 1}
    names = open_documents(saved(tmp_path, [{"messages": TALK[1:3], "tools": ["search"]}]), split="all")
    assert names.notes == ["column 'tools' holds lists of text, not tools, and is not read"]
    assert "tools_field" not in names.provenance
    assert len(list(names.with_tokenizer(chatting(WITH_TOOLS), ids_below=300))) == 1
