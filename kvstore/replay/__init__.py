"""The main job on real input: replay a request trace against a store and check every byte."""
