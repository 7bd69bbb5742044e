"""Do folders of images and labels hold what they should?"""
