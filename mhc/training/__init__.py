"""How heads learn: the LightningModule, its losses, its optimizer and its trainer's settings."""
