"""Pictures of what a network has learnt: what was it shown, what does a decoder make of its states? A file a kind."""
