"""Documents for machines: JSON Schemas of the models, AsyncAPI of the topics, OpenAPI of the query service.

    schemas.py   the models as JSON Schema, by name
    asyncapi.py  the topics and `/ws`, with the Avro schemas
    answers.py   the other answers and streams of the query service; examples.py: an example of each

All are generated from the models (domain/model.py, answers.py), the Avro schemas and the routes; nothing is written by
hand twice. A test checks that the committed files are what would be generated (tests/unit/test_documents.py), and an
acceptance test validates every record and every answer of a real run against them.
"""
