"""The Streamlit explorer: browse a feature index in the browser."""
