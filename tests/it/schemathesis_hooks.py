"""What schemathesis has to be told of the media types of the API."""

import json

import schemathesis


@schemathesis.serializer("application/x-ndjson")
def one_a_line(_context, value):
    lines = value if isinstance(value, list) else [value]
    return "\n".join(json.dumps(line) for line in lines).encode()
