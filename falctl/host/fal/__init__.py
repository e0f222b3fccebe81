"""A real `fal.App` in our host: the SDK made local, the app as one of ours. Imports the SDK only when an app has."""
