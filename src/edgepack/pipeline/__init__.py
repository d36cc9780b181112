"""What edgepack does with a request from beginning to end; it joins the parts and prints nothing."""
