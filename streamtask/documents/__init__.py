"""Documents for machines: JSON Schemas of the models, AsyncAPI of the topics, OpenAPI of the query service.

    schemas.py   the models as JSON Schema, by name
    asyncapi.py  the topics and `/ws`, with the Avro schemas
    answers.py   what the query service answers and streams beside them; examples.py: one of each

All are made from the models (domain/model.py, answers.py), the Avro schemas and the routes, and nothing is written by
hand twice. What is committed is what would be made (tests/unit/test_documents.py), and an acceptance test holds every
record and every answer of a real run to it.
"""
