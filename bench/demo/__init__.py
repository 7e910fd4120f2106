"""The demo: experts in slots, on devices and made of neurons, by search and without, beside optimum or bound."""
