"""Publishes messages with properties that no AMQP client has to be able to read.

Reads {"url": ..., "bodies": {"message_id": ..., "header_name": ..., "nested": ..., "imitated": ...}} from standard
input. Prints how many messages the broker has confirmed.
"""

import json
import sys

import pika

LEVELS = 5000

sys.setrecursionlimit(10 * LEVELS)
nested = []
for _ in range(LEVELS):
    nested = [nested]
properties = {
    "message_id": {"message_id": b"\xff\xfe"},
    "header_name": {"headers": {b"\xff\xfe": "value"}},
    "nested": {"headers": {"nested": nested}},
    "imitated": {"headers": {"x-errand-unreadable": "not from errand"}},
}

asked = json.load(sys.stdin)
connection = pika.BlockingConnection(pika.URLParameters(asked["url"]))
channel = connection.channel()
channel.confirm_delivery()
for kind, body in asked["bodies"].items():
    channel.basic_publish(
        exchange="errand",
        routing_key="default",
        body=body,
        mandatory=True,
        properties=pika.BasicProperties(delivery_mode=2, **properties[kind]),
    )
print(json.dumps(len(asked["bodies"])))
connection.close()
