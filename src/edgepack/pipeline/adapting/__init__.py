"""Adapters trained for a file as it is: what compression lost given back (`recover`), documents learnt (`teach`).

Steps are `quant.learning`'s, documents `edgepack.documents`', measuring `edge.fidelity`'s; here they are joined.
"""
