"""The Responses API's requests as chat completions: nothing is kept between two of them."""

from collections.abc import Callable, Mapping
from typing import Any

from gateway.api.bodies import missing, wrong
from gateway.http.errors import ApiError

CHAT = "/v1/chat/completions"

# What needs a response that is kept, or is run by OpenAI itself; by field, what to do instead.
_REFUSED = {
    "previous_response_id": "no response is kept: send the whole conversation as `input`",
    "conversation": "no conversation is kept: send the whole of it as `input`",
    "background": "send it as a line of a batch, to POST /v1/batches",
    "prompt": "no template is kept: send `instructions` and `input`",
    "context_management": "shorten the conversation before it is sent",
    "n": "a response has one answer; POST /v1/chat/completions has more",
    "top_logprobs": "POST /v1/chat/completions has log probabilities",
}
# Values of `include` that ask for nothing that is there: what they name is not made here.
_INCLUDED = frozenset({"reasoning.encrypted_content"})
# Fields that the chat API names or places otherwise, or that mean nothing there.
_TAKEN = frozenset(_REFUSED) | {
    "input",
    "instructions",
    "max_output_tokens",
    "tools",
    "tool_choice",
    "text",
    "reasoning",
    "include",
    "truncation",
    "max_tool_calls",
    "stream_options",
}
_ROLES = ("user", "assistant", "system", "developer")
_TEXTS = {"input_text": "text", "output_text": "text", "text": "text", "refusal": "refusal"}


def chat_body(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the body of the chat completion that a request for a response asks for.

    Fields that neither API has go to the model server, as those of a chat completion do.

    Raises:
        ApiError: something is missing or unfit, or asks for what is not served (400).
    """
    _refuse(body)
    chat = {name: value for name, value in body.items() if name not in _TAKEN}
    chat["messages"] = _messages(body)
    if (most := body.get("max_output_tokens")) is not None:
        if type(most) is not int or most < 1:
            raise wrong("max_output_tokens", "is a whole number from 1")
        chat["max_tokens"] = most
    if tools := _list(body, "tools"):
        chat["tools"] = [_tool(tool, f"tools[{n}]") for n, tool in enumerate(tools)]
    if (choice := body.get("tool_choice")) is not None and tools:
        chat["tool_choice"] = _tool_choice(choice)
    text, reasoning = _object(body, "text"), _object(body, "reasoning")
    if (form := _format(_object(text, "format", "text."))) is not None:
        chat["response_format"] = form
    for name, given in (("verbosity", text), ("effort", reasoning)):
        if given.get(name) is not None:
            chat[{"effort": "reasoning_effort"}.get(name, name)] = given[name]
    return chat


def _refuse(body: Mapping[str, Any]) -> None:
    for name, instead in _REFUSED.items():
        # Clients that know both APIs may send the `n` of a chat completion that wants one answer.
        if body.get(name) and (name, body[name]) != ("n", 1):
            raise _unserved(name, instead)
    if body.get("truncation") not in (None, "disabled"):
        raise _unserved("truncation", "shorten the conversation before it is sent")
    for name in _list(body, "include"):
        if not isinstance(name, str) or name not in _INCLUDED:
            raise _unserved("include", f"{name!r:.60} is not made here")


def _unserved(name: str, instead: str) -> ApiError:
    return ApiError(400, "unsupported_parameter", f"{name} is not served: {instead}", param=name)


def _list(body: Mapping[str, Any], name: str) -> list[Any]:
    found = body.get(name)
    if found is not None and not isinstance(found, list):
        raise wrong(name, "is an array", "invalid_type")
    return found or []


def _object(body: Mapping[str, Any], name: str, above: str = "") -> Mapping[str, Any]:
    found = body.get(name)
    if found is not None and not isinstance(found, dict):
        raise wrong(f"{above}{name}", "is an object", "invalid_type")
    return found or {}


def _messages(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    said = body.get("input")
    if said is None:
        raise missing("input")
    messages: list[dict[str, Any]] = []
    if (instructions := body.get("instructions")) is not None:
        if not isinstance(instructions, str):
            raise wrong("instructions", "is a string", "invalid_type")
        messages.append({"role": "system", "content": instructions})
    if isinstance(said, str):
        messages.append({"role": "user", "content": said})
    elif isinstance(said, list):
        if not said:
            raise wrong("input", "is empty")
        for number, item in enumerate(said):
            _add_item(messages, item, f"input[{number}]")
    else:
        raise wrong("input", "is a string or an array", "invalid_type")
    return messages


def _add_item(messages: list[dict[str, Any]], item: Any, where: str) -> None:
    """Add what an item says; calls of functions belong to the assistant's message before them."""
    if not isinstance(item, dict):
        raise wrong(where, "is an object", "invalid_type")
    kind = item.get("type") or "message"
    if kind == "message":
        role = item.get("role")
        if role not in _ROLES:
            raise wrong(f"{where}.role", f"is one of {', '.join(_ROLES)}")
        messages.append({"role": role, "content": _content(item.get("content"), where)})
    elif kind == "function_call":
        texts = {k: _text(item, k, where) for k in ("call_id", "name", "arguments")}
        function = {"name": texts["name"], "arguments": texts["arguments"]}
        call = {"id": texts["call_id"], "type": "function", "function": function}
        if not messages or messages[-1]["role"] != "assistant":
            messages.append({"role": "assistant", "content": None})
        messages[-1].setdefault("tool_calls", []).append(call)
    elif kind == "function_call_output":
        content = _content(item.get("output"), where, "output")
        call_id = _text(item, "call_id", where)
        messages.append({"role": "tool", "tool_call_id": call_id, "content": content})
    elif kind != "reasoning":
        # What a model thought before is not for the next turn.
        raise _unserved(f"{where}.type", f"{kind!r:.60} is of no conversation here")


def _text(item: Mapping[str, Any], name: str, where: str) -> str:
    found = item.get(name)
    if not isinstance(found, str):
        raise wrong(f"{where}.{name}", "is a string", "invalid_type")
    return found


def _content(content: Any, where: str, name: str = "content") -> Any:
    """Return the content of a message, as text where it is text alone."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise wrong(f"{where}.{name}", "is a string or an array", "invalid_type")
    parts = [_part(part, f"{where}.{name}[{n}]") for n, part in enumerate(content)]
    if all(part["type"] == "text" for part in parts):
        # Servers of text models take strings alone for some roles.
        return "".join(part["text"] for part in parts)
    return parts


def _part(part: Any, where: str) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, dict) else None
    if isinstance(kind, str) and kind in _TEXTS:
        return {"type": "text", "text": _text(part, _TEXTS[kind], where)}
    if kind == "input_image":
        image = {"url": _text(part, "image_url", where)}
        if part.get("detail") is not None:
            image["detail"] = part["detail"]
        return {"type": "image_url", "image_url": image}
    if kind == "input_audio":
        return {"type": "input_audio", "input_audio": part.get("input_audio")}
    raise _unserved(f"{where}.type", "parts are input_text, input_image by its URL, input_audio")


def _tool(tool: Any, where: str) -> dict[str, Any]:
    kind = tool.get("type") if isinstance(tool, dict) else None
    if kind != "function":
        message = f"{kind!r:.60} is run by nobody here; functions are called"
        raise _unserved(f"{where}.type", message)
    names = ("name", "description", "parameters", "strict")
    function = {name: tool[name] for name in names if tool.get(name) is not None}
    return {"type": "function", "function": function}


def _tool_choice(choice: Any) -> Any:
    if isinstance(choice, str):
        return choice
    if isinstance(choice, dict) and choice.get("type") == "function":
        return {"type": "function", "function": {"name": _text(choice, "name", "tool_choice")}}
    raise _unserved("tool_choice", "it is none, auto, required, or a function by its name")


def _format(form: Mapping[str, Any]) -> dict[str, Any] | None:
    kind = form.get("type", "text")
    read: Callable[[Any], dict[str, Any] | None] | None = {
        "text": lambda _: None,
        "json_object": lambda _: {"type": "json_object"},
        "json_schema": _schema,
    }.get(kind if isinstance(kind, str) else "")
    if read is None:
        raise _unserved("text.format.type", "it is text, json_object or json_schema")
    return read(form)


def _schema(form: Mapping[str, Any]) -> dict[str, Any]:
    names = ("name", "description", "schema", "strict")
    given = {name: form[name] for name in names if form.get(name) is not None}
    return {"type": "json_schema", "json_schema": given}
