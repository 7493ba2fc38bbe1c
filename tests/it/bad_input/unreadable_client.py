"""Publishes messages with properties and addresses that no AMQP client has to be able to read.

Reads {"url": ..., "bodies": {"message_id": ..., "header_name": ..., "nested": ..., "imitated": ...,
"too_long": ..., "routing_key": ...}} from standard input. Prints how many messages the broker has confirmed.
"""

import json
import sys

import pika

LEVELS = 5000
FRAME_MAX = 131072

sys.setrecursionlimit(10 * LEVELS)
nested = []
for _ in range(LEVELS):
    nested = [nested]
properties = {
    "message_id": {"message_id": b"\xff\xfe"},
    "header_name": {"headers": {b"\xff\xfe": "value"}},
    "nested": {"headers": {"nested": nested}},
    "imitated": {"headers": {"x-errand-unreadable": "not from errand"}},
    # The broker takes a content header of as many bytes as a whole frame may have, and 29 are around this text.
    "too_long": {"headers": {"long": "x" * (FRAME_MAX - 29)}},
}

# Exchange and routing key, where they are not those of errand.
addresses = {"routing_key": ("somebody's", b"\xff\xfe")}

asked = json.load(sys.stdin)
connection = pika.BlockingConnection(pika.URLParameters(asked["url"]))
channel = connection.channel()
channel.confirm_delivery()
for exchange, _ in addresses.values():
    channel.exchange_declare(exchange=exchange, exchange_type="fanout", durable=True)
    channel.queue_bind(queue="errand.default", exchange=exchange)
for kind, body in asked["bodies"].items():
    exchange, routing_key = addresses.get(kind, ("errand", "default"))
    channel.basic_publish(
        exchange=exchange,
        routing_key=routing_key,
        body=body,
        mandatory=True,
        properties=pika.BasicProperties(delivery_mode=2, **properties.get(kind, {})),
    )
print(json.dumps(len(asked["bodies"])))
connection.close()
