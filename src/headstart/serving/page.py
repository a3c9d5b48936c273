"""A page about the routes that needs no network: the usual ones load their scripts from elsewhere."""

from __future__ import annotations

import json
from html import escape
from typing import Any

HEAD = """<!doctype html><html lang="en"><meta charset="utf-8"><title>headstart serve</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<style>body{font:16px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em}pre{background:#f4f4f4;padding:.7em;overflow:auto}
code{font-size:90%}h2{border-top:1px solid #ccc;padding-top:.7em}
td,th{text-align:left;vertical-align:top;padding:.2em 1em .2em 0}</style><h1>headstart serve</h1>"""


def page(schema: dict[str, Any]) -> str:
    """The routes, bodies and answers of an OpenAPI schema as HTML.

    Example:
        >>> "<h2><code>GET /health</code></h2>" in page({"paths": {"/health": {"get": {"summary": "Health", "responses": {}}}}})
        True
    """
    parts = [HEAD, f"<p>{escape(schema.get('info', {}).get('description', ''))} The schema: <code>/openapi.json</code></p>"]
    for path, methods in schema["paths"].items():
        for method, said in methods.items():
            parts.append(
                f"<h2><code>{method.upper()} {escape(path)}</code></h2><p>{escape(said.get('description') or said['summary'])}</p>"
            )
            body = said.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
            if body:
                parts.append(f"<p>Body: {_kind(body)}</p>")
            for status, answer in said["responses"].items():
                given = answer.get("content", {}).get("application/json", {}).get("schema")
                shown = f": {_kind(given)}" if given else ""
                parts.append(f"<p><code>{escape(status)}</code> {escape(answer.get('description', ''))}{shown}</p>")
    schemas = schema.get("components", {}).get("schemas", {})
    parts += [f'<h2 id="{escape(name)}"><code>{escape(name)}</code></h2>{_table(own)}' for name, own in schemas.items()]
    return "".join(parts)


def _table(schema: dict[str, Any]) -> str:
    """The fields of an object, with what they may be; anything else as it is."""
    if "properties" not in schema:
        return f"<pre>{escape(json.dumps(schema, indent=1, ensure_ascii=False))}</pre>"
    needed = schema.get("required", ())
    rows = [
        f"<tr><td><code>{escape(name)}</code>{'' if name in needed else ' (may be left out)'}</td><td>{_kind(own)}</td></tr>"
        for name, own in schema["properties"].items()
    ]
    return f"<p>{escape(schema.get('description', ''))}</p><table><tr><th>field</th><th>is</th></tr>{''.join(rows)}</table>"


def _kind(schema: dict[str, Any]) -> str:
    """What a value may be, in words."""
    if name := schema.get("$ref", "").rpartition("/")[2]:
        return f'<a href="#{escape(name)}"><code>{escape(name)}</code></a>'
    if options := schema.get("anyOf", schema.get("oneOf")):
        return " or ".join(map(_kind, options))
    said = escape(schema.get("description", ""))
    if schema.get("type") == "array":
        most = f" of at most {schema['maxItems']}" if "maxItems" in schema else ""
        return f"list{most}{': ' + _kind(schema['items']) if schema.get('items') else ''}{', ' + said if said else ''}"
    return said or escape(str(schema.get("type", "anything")))
