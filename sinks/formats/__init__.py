"""Formats of events in messages: JSON, CloudEvents binary mode, Avro and Protobuf, with a schema registry."""
