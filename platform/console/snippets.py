"""Ready-to-paste calls of an endpoint: curl, plain Python, tritonclient; of a language model curl and openai."""

from __future__ import annotations

import json
import shlex
from typing import Any

from django.conf import settings

from console.playground import example_of
from endpoints.models import Endpoint

LONG = 24
QUESTION = "Why is the sky blue?"
NUMPY = {
    "BOOL": "bool_", "INT8": "int8", "INT16": "int16", "INT32": "int32", "INT64": "int64", "UINT8": "uint8",
    "UINT16": "uint16", "UINT32": "uint32", "UINT64": "uint64", "FP16": "float16", "FP32": "float32", "FP64": "float64",
    "BYTES": "object_",
}  # fmt: skip


def needs_key(endpoint: Endpoint) -> bool:
    return endpoint.access == Endpoint.Access.KEY and not settings.INSECURE


def chat_snippets(gateway_url: str, model: str, *, key: bool, chats: bool = True) -> list[dict[str, str]]:
    """As `snippets`, for a language model; chats: it has a chat template. model: an endpoint's name, maybe with @N."""
    base = f"{gateway_url.rstrip('/')}/v1"
    asked: dict[str, Any] = (
        {"messages": [{"role": "user", "content": QUESTION}]} if chats else {"prompt": QUESTION, "max_tokens": 64}
    )
    body = {"model": model, **asked, "stream": True}
    return [
        {"id": "curl", "label": "curl", "text": _chat_curl(base, body, key=key, chats=chats)},
        {"id": "python", "label": "Python (openai)", "text": _openai(base, body, key=key, chats=chats)},
    ]


def _chat_curl(base: str, body: dict[str, Any], *, key: bool, chats: bool) -> str:
    lines = [f"curl -N {base}/{'chat/' if chats else ''}completions"]
    if key:
        lines.append('-H "Authorization: Bearer $SERINUS_API_KEY"')
    lines += ["-H 'Content-Type: application/json'", f"-d {shlex.quote(json.dumps(body))}"]
    return " \\\n  ".join(lines)


def _openai(base: str, body: dict[str, Any], *, key: bool, chats: bool) -> str:
    secret = 'os.environ["SERINUS_API_KEY"]' if key else '"none"'
    given = "".join(f"    {name}={value!r},\n" for name, value in body.items())
    piece = "delta.content" if chats else "text"
    return (
        f"{'import os' + chr(10) * 2 if key else ''}from openai import OpenAI\n\n"
        f'client = OpenAI(base_url="{base}", api_key={secret})\n'
        f"stream = client.{'chat.' if chats else ''}completions.create(\n{given})\n"
        f'for chunk in stream:\n    print(chunk.choices[0].{piece} or "", end="", flush=True)\nprint()\n'
    )


def snippets(gateway_url: str, endpoint: str, signature: dict[str, Any], *, key: bool) -> list[dict[str, str]]:
    """[{id, label, text}]. The key stands in the environment variable SERINUS_API_KEY, never in the text."""
    example = example_of(signature)
    url = f"{gateway_url.rstrip('/')}/v2/models/{endpoint}/infer"
    return [
        {"id": "curl", "label": "curl", "text": _curl(url, example, key=key)},
        {"id": "python", "label": "Python", "text": _python(url, example, key=key)},
        {"id": "triton", "label": "tritonclient", "text": _triton(gateway_url, endpoint, example, key=key)},
    ]


def _curl(url: str, example: dict[str, Any], *, key: bool) -> str:
    lines = [f"curl -s {url}"]
    if key:
        lines.append('-H "Authorization: Bearer $SERINUS_API_KEY"')
    lines += ["-H 'Content-Type: application/json'", f"-d {shlex.quote(json.dumps(example))}"]
    return " \\\n  ".join(lines)


def _values(data: list[Any]) -> str:
    """A Python expression for the values, short when they are many and alike."""
    return f"[{data[0]!r}] * {len(data)}" if len(data) > LONG else repr(data)


def _python(url: str, example: dict[str, Any], *, key: bool) -> str:
    """With the standard library alone, so that it runs wherever it is pasted."""
    inputs = "".join(
        f'    {{"name": {one["name"]!r}, "datatype": {one["datatype"]!r}, "shape": {one["shape"]!r}, '
        f'"data": {_values(one["data"])}}},\n'
        for one in example["inputs"]
    )
    headers = '{"Authorization": f"Bearer {os.environ[\'SERINUS_API_KEY\']}"}' if key else "{}"
    return (
        f"import json\n{'import os' + chr(10) if key else ''}import urllib.request\n\n"
        f"inputs = [\n{inputs}]\n"
        f"request = urllib.request.Request(\n    {url!r},\n"
        f'    json.dumps({{"inputs": inputs}}).encode(),\n    {headers},\n)\n'
        "with urllib.request.urlopen(request, timeout=30) as answer:\n"
        '    print(json.load(answer)["outputs"])\n'
    )


def _triton(gateway_url: str, endpoint: str, example: dict[str, Any], *, key: bool) -> str:
    address = gateway_url.split("://", 1)[-1].rstrip("/")
    headers = '{"Authorization": f"Bearer {os.environ[\'SERINUS_API_KEY\']}"}' if key else "{}"
    lines = ["import os"] if key else []
    lines += ["import numpy as np", "import tritonclient.http as triton", ""]
    lines += [f"client = triton.InferenceServerClient({address!r})", "inputs = []"]
    for one in example["inputs"]:
        dtype = NUMPY.get(one["datatype"], "float32")
        lines += [
            f"array = np.array({_values(one['data'])}, dtype=np.{dtype}).reshape({one['shape']!r})",
            f"inputs.append(triton.InferInput({one['name']!r}, list(array.shape), {one['datatype']!r}))",
            "inputs[-1].set_data_from_numpy(array)",
        ]
    lines += [
        f"answer = client.infer({endpoint!r}, inputs, headers={headers})",
        'for output in answer.get_response()["outputs"]:',
        '    print(output["name"], answer.as_numpy(output["name"]))',
    ]
    return "\n".join(lines) + "\n"


def batch_snippet(gateway_url: str, endpoint: str) -> str:
    """A batch from Python, with the openai client as it is."""
    return (
        "import json, os\nfrom openai import OpenAI\n\n"
        f'client = OpenAI(base_url="{gateway_url.rstrip("/")}/v1", api_key=os.environ["SERINUS_API_KEY"])\n'
        'lines = [{"custom_id": f"q-{n}", "method": "POST", "url": "/v1/chat/completions",\n'
        f'          "body": {{"model": "{endpoint}", "messages": [{{"role": "user", "content": question}}]}}}}\n'
        '         for n, question in enumerate(["Why is the sky blue?", "What is a canary?"])]\n'
        'data = "\\n".join(json.dumps(line) for line in lines).encode()\n'
        'file = client.files.create(file=("questions.jsonl", data), purpose="batch")\n'
        "batch = client.batches.create(\n"
        '    input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"\n)\n'
        "# later\n"
        "batch = client.batches.retrieve(batch.id)\n"
        'if batch.status == "completed" and batch.output_file_id:\n'
        "    print(client.files.content(batch.output_file_id).text)\n"
    )
