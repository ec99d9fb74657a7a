"""The networks of StyleGAN2: shared layers, generator and discriminator."""
