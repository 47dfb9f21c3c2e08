"""What only nano's training needs: the connector's alignment and the parts that are fitted in closed form."""
