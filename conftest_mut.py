from hypothesis import settings, Phase
settings.register_profile("noshrink", phases=[Phase.generate], max_examples=600)
