"""A page about the routes that needs no network: the usual ones load their scripts from elsewhere."""

from __future__ import annotations

import json
from html import escape
from typing import Any

HEAD = """<!doctype html><html lang="en"><meta charset="utf-8"><title>headstart serve</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<style>body{font:16px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em}pre{background:#f4f4f4;padding:.7em;overflow:auto}
code{font-size:90%}h2{border-top:1px solid #ccc;padding-top:.7em}</style><h1>headstart serve</h1>"""


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
                parts.append(f"<p>Body</p>{_shown(body)}")
            for status, answer in said["responses"].items():
                parts.append(f"<p><code>{escape(status)}</code> {escape(answer.get('description', ''))}</p>")
    schemas = schema.get("components", {}).get("schemas", {})
    parts += [f"<h2><code>{escape(name)}</code></h2>{_shown(own)}" for name, own in schemas.items()]
    return "".join(parts)


def _shown(schema: Any) -> str:
    return f"<pre>{escape(json.dumps(schema, indent=1, ensure_ascii=False))}</pre>"
