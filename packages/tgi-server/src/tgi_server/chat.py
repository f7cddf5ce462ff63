"""From the messages of a conversation to one prompt."""

from __future__ import annotations

import asyncio
from typing import Any

from tgi_core.errors import ChatTemplateError
from tgi_server.errors import InvalidInput, TemplateFailed, ToolsRefused
from tgi_server.schemas.openai import ChatRequest, ImagePart, Message, Tool
from tgi_server.service import Service

MAX_MESSAGES = 4096
MAX_TOOLS = 128
MAX_PROMPT_CHARACTERS = 4 * 1024 * 1024
RENDER_TIMEOUT_S = 10.0


async def prompt_of(service: Service, request: ChatRequest) -> str:
    """The templated conversation, up to where the model is to write.

    Raises:
        InvalidInput, TemplateFailed, ToolsRefused: the conversation or its tools cannot be templated.
    """
    if len(request.messages) > MAX_MESSAGES:
        raise InvalidInput(f"`messages` supports up to {MAX_MESSAGES} messages. Given: {len(request.messages)}")
    tools = _tools(service, request)
    messages = [_plain(message) for message in request.messages]
    continued = _continued(request.messages[-1]) if request.messages else None
    loop = asyncio.get_running_loop()
    rendering = loop.run_in_executor(
        service.pool, _render, service, messages, tools, continued is None, request.chat_template_kwargs or {}
    )
    try:
        prompt = await asyncio.wait_for(rendering, RENDER_TIMEOUT_S)
    except ChatTemplateError as error:
        raise TemplateFailed(str(error)) from error
    except TimeoutError:
        raise TemplateFailed(f"the template took longer than {RENDER_TIMEOUT_S:.0f} s") from None
    if len(prompt) > MAX_PROMPT_CHARACTERS:
        raise TemplateFailed(f"the template made more than {MAX_PROMPT_CHARACTERS} characters")
    return prompt if continued is None else _cut_after(prompt, continued)


def _render(
    service: Service,
    messages: list[dict[str, Any]],
    tools: list[dict[str, Any]] | None,
    add_generation_prompt: bool,
    variables: dict[str, Any],
) -> str:
    reserved = {"messages", "tools", "add_generation_prompt", "template_name", "bos_token", "eos_token"}
    if clash := reserved & variables.keys():
        raise ChatTemplateError(f"chat_template_kwargs may not set {', '.join(sorted(clash))}")
    return service.tokenizer.render_chat(
        messages, tools=tools, add_generation_prompt=add_generation_prompt, **variables
    )


def _plain(message: Message) -> dict[str, Any]:
    """A message as templates read it: the text parts of its content joined."""
    plain: dict[str, Any] = {"role": message.role, "content": _text(message)}
    for name in ("name", "tool_calls", "tool_call_id"):
        if (value := getattr(message, name)) is not None:
            plain[name] = value
    return plain


def _text(message: Message) -> str:
    content = message.content
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if any(isinstance(part, ImagePart) for part in content):
        raise InvalidInput("image modality is not supported", param="messages")
    return "".join(part.text for part in content if not isinstance(part, ImagePart))


def _continued(last: Message) -> str | None:
    """The text that the model is to go on from: that of a last message by the assistant."""
    return _text(last) if last.role == "assistant" and not last.tool_calls else None


def _cut_after(prompt: str, content: str) -> str:
    """End the prompt where the last message's content ends, without what the template closes it with."""
    for piece in (content, content.strip()):
        place = prompt.rfind(piece) if piece else -1
        if place >= 0:
            return prompt[: place + len(piece)].rstrip()
    return prompt


def _tools(service: Service, request: ChatRequest) -> list[dict[str, Any]] | None:
    """The tools to template.  Nothing forces their use, so only `auto` can be honoured."""
    choice = request.tool_choice
    if not request.tools or choice == "none":
        return None
    if choice not in (None, "auto"):
        raise ToolsRefused("only tool_choice `auto` and `none` are supported", param="tool_choice")
    if len(request.tools) > MAX_TOOLS:
        raise ToolsRefused(f"at most {MAX_TOOLS} tools are supported. Given: {len(request.tools)}", param="tools")
    if "tools" not in _template_source(service.tokenizer.chat_template):
        raise ToolsRefused("the chat template of this model knows no tools", param="tools")
    return [_tool(tool) for tool in request.tools]


def _tool(tool: Tool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.function.name, "description": tool.function.description or ""}
    function["parameters"] = tool.function.parameters or {"type": "object", "properties": {}}
    return {"type": tool.type, "function": function}


def _template_source(template: str | dict[str, str] | None) -> str:
    return " ".join(template.values()) if isinstance(template, dict) else template or ""
