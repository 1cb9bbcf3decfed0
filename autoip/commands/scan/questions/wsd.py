"""WS-Discovery (OASIS 1.1): cameras of ONVIF, printers, Windows.

The answer is XML of a stranger: it is searched, never parsed, so that it can neither nest nor expand.
"""

from __future__ import annotations

import os
import re

from autoip.commands.scan.questions import Answer

PORT, GROUP, TTL = 3702, 0xEFFFFFFA, 1

_PROBE = """<?xml version="1.0" encoding="utf-8"?>
<s:Envelope xmlns:s="http://www.w3.org/2003/05/soap-envelope" \
xmlns:a="http://schemas.xmlsoap.org/ws/2004/08/addressing" \
xmlns:d="http://schemas.xmlsoap.org/ws/2005/04/discovery"><s:Header>\
<a:Action>http://schemas.xmlsoap.org/ws/2005/04/discovery/Probe</a:Action>\
<a:MessageID>urn:uuid:{}</a:MessageID>\
<a:To>urn:schemas-xmlsoap-org:ws:2005:04:discovery</a:To>\
</s:Header><s:Body><d:Probe/></s:Body></s:Envelope>"""
_SIZE_MAX = 16384
_TYPES = re.compile(r"<(?:\w{1,32}:)?Types[^<>]{0,512}>([^<>]{1,1024})<")
_ONVIF = re.compile(r"onvif://www\.onvif\.org/(name|hardware)/([^\s<>]{1,256})")


def question() -> bytes:
    """Return a Probe for everything."""
    digits = os.urandom(16).hex()
    parts = (digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:])
    return _PROBE.format("-".join(parts)).encode()


def answer(payload: bytes) -> Answer | None:
    """Read ProbeMatches or Hello."""
    text = payload[:_SIZE_MAX].decode("utf-8", "replace")
    if "ProbeMatch" not in text and "Hello" not in text:
        return None
    kinds = [word.rpartition(":")[2] for found in _TYPES.findall(text) for word in found.split()]
    from urllib.parse import unquote  # a scan must start fast

    scopes = [(what, unquote(value)) for what, value in _ONVIF.findall(text)]
    kinds += [value for what, value in scopes if what == "hardware"]
    names = [value for what, value in scopes if what == "name"]
    return Answer(tuple(dict.fromkeys(names)), tuple(dict.fromkeys(kinds)))
