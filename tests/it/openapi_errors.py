"""Prints what is wrong with an OpenAPI 3.1 document, by the official schema, which schemathesis brings along."""

import json
import sys

from schemathesis.specs.openapi.definitions import OPENAPI_31_VALIDATOR

print(json.dumps([error.message for error in OPENAPI_31_VALIDATOR.iter_errors(json.load(sys.stdin))]))
